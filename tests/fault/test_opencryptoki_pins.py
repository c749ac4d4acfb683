"""A token that really locks its PIN (SoftHSM never does), behind the HSM process."""

from pathlib import Path

from fixtures.hsmd import Hsmd, MakeHsmd
from fixtures.opencryptoki import OpenCryptoki, running
from fixtures.softhsm import SharedToken

LAST, LOCKED = "USER_PIN_FINAL_TRY", "USER_PIN_LOCKED"
NEW, WRONG = "24682468", "00000000"
# It locks itself at the third.
RESTARTS = 3


def state_of(hsmd: Hsmd) -> str:
    """The device's, asked of a process that is started for it."""
    hsmd.start()
    (device,) = hsmd.status()["devices"]
    assert hsmd.end() == 0
    return str(device["state"])


def lock(token: OpenCryptoki) -> None:
    """Try a wrong PIN by the token's own tool until it takes none."""
    for _ in range(10):
        if LOCKED in token.pkcsconf("-t"):
            return
        token.pkcsconf("-p", "-U", WRONG, "-n", WRONG)
    raise AssertionError(token.pkcsconf("-t"))


def test_no_restart_runs_into_a_lock_out(
    make_hsmd: MakeHsmd, shared_token: SharedToken, tmp_path: Path
) -> None:
    """However often the process is started with a wrong PIN, in the same file or in one that is
    written anew each time, the token is not locked. Its last try is left to the operator, and after
    it the right PIN opens the token. One that is locked is told, and not tried.
    """
    folder = tmp_path / "token"
    folder.mkdir()
    with running(folder) as token:
        hsmd = make_hsmd(
            token=shared_token("clouds"),
            backends=[token.uri("master")],
            inside=token.inside,
            start=False,
        )
        assert hsmd.run("create").returncode == 0
        right = token.pin_file.read_text()
        for anew in (False, True):
            token.pin_file.write_text(f"{WRONG}\n")
            for _ in range(RESTARTS):
                if anew:
                    token.pin_file.unlink()
                    token.pin_file.touch(mode=0o600)
                    token.pin_file.write_text(f"{WRONG}\n")
                assert state_of(hsmd) == "PIN_REFUSED"
            assert LOCKED not in token.pkcsconf("-t")
        (latch,) = (hsmd.folder / "state").glob("pin-refused-*.json")
        latch.unlink()
        token.pin_file.write_text(right)
        # The last try is the operator's, by the device's own tool.
        assert LAST in token.pkcsconf("-t")
        assert state_of(hsmd) == "PIN_REFUSED"
        token.pkcsconf("-p", "-U", right.strip(), "-n", NEW)
        token.pin_file.write_text(f"{NEW}\n")
        assert state_of(hsmd) == "READY"
        lock(token)
        assert state_of(hsmd) == "PIN_REFUSED"
        assert state_of(hsmd) == "PIN_REFUSED"
