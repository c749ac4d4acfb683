"""The tokens of a dev state, made and found again."""

import subprocess
from pathlib import Path

from ironwork_hsm.pkcs11.softhsm import create_token
from ironwork_server.app.dev.tokens import TOKEN_LABEL, existing_tokens, make_tokens


def labels(config: Path) -> set[str]:
    """Of the tokens that a process with this configuration sees."""
    said = subprocess.run(
        ["softhsm2-util", "--show-slots"],
        env={"SOFTHSM2_CONF": str(config), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    found = (line.partition(":")[2].strip() for line in said.splitlines() if "Label:" in line)
    return {label for label in found if label}


def test_every_token_has_a_pin_of_its_own(tmp_path: Path) -> None:
    """One process sees the three tokens; no two keys share a token or a PIN, and the next start
    finds the same; what a start that was broken off left is gone.
    """
    (tmp_path / "hsm-record").mkdir()
    (tmp_path / "hsm-record" / "pin").write_text("half")
    made = make_tokens(tmp_path)
    assert made.record is not None
    tokens = (made.master, made.audit, made.record)
    assert {token.config for token in tokens} == {made.master.config}
    assert len({token.pin_file.read_text() for token in tokens}) == 3
    names = {TOKEN_LABEL, f"{TOKEN_LABEL}-audit", f"{TOKEN_LABEL}-record"}
    assert labels(made.master.config) == names
    assert existing_tokens(tmp_path) == made


def test_a_state_of_before_goes_on(tmp_path: Path) -> None:
    """A state folder whose server held the audit key's token itself: that token is put beside the
    master key's, with its key; the HSM process' record stays unsigned.
    """
    master = create_token(tmp_path / "hsm", TOKEN_LABEL)
    create_token(tmp_path / "hsm-audit", f"{TOKEN_LABEL}-audit", object_label="checkpoints")
    for _ in range(2):
        found = existing_tokens(tmp_path)
        assert labels(master.config) == {TOKEN_LABEL, f"{TOKEN_LABEL}-audit"}
        assert found.audit.config == master.config
        assert found.record is None
