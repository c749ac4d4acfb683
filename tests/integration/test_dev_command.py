"""`dev` as a process: its roles, its files, its refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fixtures.evidence import files_in
from fixtures.hsmd import entries_of
from fixtures.processes import Dev, command, dev, standing_still
from fixtures.production import Production
from ironwork_audit.cli.main import main as audit
from ironwork_client import AuditClient, KeyClient, PermissionDenied, Profile
from ironwork_server.cli import dev_serving, leakcheck
from ironwork_server.cli.main import main
from ironwork_server.upstream.endpoint import ANTHROPIC, UpstreamEndpoint


@pytest.fixture(scope="module")
def half_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose making was killed in the middle: a token without its key, PINs that
    belong to none, half of a record, an empty CA file and no database.
    """
    state = tmp_path_factory.mktemp("half") / "state"
    (state / "hsm" / "tokens" / "0123").mkdir(parents=True, mode=0o700)
    (state / "hsm" / "tokens" / "0123" / "token.object").write_bytes(b"half")
    (state / "hsm" / "pin").write_text("1234\n")
    (state / "hsm-audit").mkdir()
    (state / "hsm-audit" / "pin").write_text("1234\n")
    (state / "hsmd" / "record" / "operator").mkdir(parents=True, mode=0o700)
    (state / "pki").mkdir()
    (state / "pki" / "ca-key.pem").write_text("half")
    (state / "DEV").touch()
    return state


@pytest.fixture(scope="module")
def running(half_made: Path) -> Iterator[Dev]:
    """`dev`, started on the half-made state folder: it serves all the same."""
    with dev(half_made) as started:
        yield started


def test_each_role_has_a_profile_that_works(running: Dev) -> None:
    """The admin keeps keys, the agent uses them, the auditor reads the log, a stranger may
    nothing of this company's.
    """
    with KeyClient(Profile.load(running.profile("admin"))) as admin:
        added = admin.add(running.keys["first"], "first")
        assert added.current
    with AuditClient(Profile.load(running.profile("auditor"))) as auditor:
        assert any(b"AddKey" in record.event for record in auditor.entries())
    for role in ("agent", "stranger"):
        with (
            KeyClient(Profile.load(running.profile(role))) as other,
            pytest.raises(PermissionDenied),
        ):
            list(other.list())


def test_the_simulators_keys_are_in_no_file(running: Dev) -> None:
    """They are derived from the throw-away CA's key at each start, and shown, not kept."""
    assert set(running.keys) == {
        "first", "second", "third", "other-organization", "revoked", "restricted",
    }  # fmt: skip
    with standing_still(running.running.process.pid):
        files = files_in(running.state.parent)
        assert len(files) > 10
        for key in running.keys.values():
            assert not leakcheck.search(key.encode(), files)


def test_dev_leaves_every_pin_to_the_hsm_process(running: Dev) -> None:
    """The server has no PKCS#11 module and no PIN: one child of the HSM process for each token is
    logged in, and every wrap, unwrap and signature that the server asks for is on that process' own
    record, which is signed and verifies.
    """
    server = psutil.Process(running.running.process.pid)
    library = b"libsofthsm2.so"
    holding = [
        process
        for process in [server, *server.children(recursive=True)]
        if library in Path(f"/proc/{process.pid}/maps").read_bytes()
    ]
    assert server not in holding
    assert len(holding) == 3
    with AuditClient(Profile.load(running.profile("auditor"))) as auditor:
        asked = {
            (record.parsed()["metadata"]["correlation_uid"], record.parsed()["api"]["operation"])  # type: ignore[index, call-overload]
            for record in auditor.entries()
            if any(name in record.event for name in (b'"hsm.wrap"', b'"hsm.unwrap"', b'"hsm.sign"'))
        }
    record = running.state / "hsmd" / "record"
    done = {(entry.event.correlation_id, entry.event.operation) for entry in entries_of(record)}
    assert {operation for _, operation in asked} >= {"hsm.wrap", "hsm.sign"}
    assert asked <= done
    logs = ((running.state / "audit", running.state), (record, running.state / "hsmd"))
    for log, place in logs:
        assert audit(["verify", str(log), "--key", str(place / "verifier-key")]) == 0


def test_the_state_folder_is_private(running: Dev) -> None:
    """Nobody else reads the PIN, the CA's key, the database or the log, whoever made the folder."""
    assert running.state.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dev` in this process leaves the tests' logging alone."""
    monkeypatch.setattr("ironwork_server.app.logs.configure", lambda _: None)


@pytest.mark.usefixtures("quiet")
def test_a_second_server_on_the_same_folder_is_refused(
    running: Dev, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two servers on one state folder would write over each other."""
    assert main(["dev", "--state", str(running.state), "--listen", "127.0.0.1:0"]) == 1
    assert capsys.readouterr().err == (
        f"ironwork-server: {running.state} is in use by another server: stop that one, or give"
        " --state another folder.\n"
    )


def test_a_second_server_on_the_same_port_is_refused(running: Dev, tmp_path: Path) -> None:
    """The port is named, and what can be done."""
    second = command("dev", "--state", str(tmp_path / "s"), "--listen", running.target)
    assert second.returncode == 1
    last = second.stderr.splitlines()[-1]
    assert last.startswith(f"ironwork-server: {running.target} cannot be listened on")
    assert "Traceback" not in second.stderr


def test_serve_refuses_what_dev_made(
    running: Dev, production: Production, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pointing `serve` at dev's files is refused, whichever of them it is."""
    state = running.state
    for section, changed in (
        ("tls", {**production.settings["tls"], "client_ca": str(state / "pki" / "ca.pem")}),
        ("store", {"url": f"sqlite:///{state / 'db' / 'keys.db'}"}),
    ):
        kept = production.settings[section]
        production.settings[section] = changed
        assert main(["serve", "--config", str(production.write())]) == 1
        assert "`ironwork-server dev` and is not for production" in capsys.readouterr().err
        production.settings[section] = kept


def test_freed_memory_is_overwritten(running: Dev) -> None:
    """`dev` and `serve` start themselves anew for that, and the HSM process has it too; other
    children, here the simulator, which is no part of ours, do not inherit it.
    """
    first = running.running.events()[0]
    assert (first["event"], first["level"]) == ("memory.overwrites_freed", "info")
    environments = [
        Path(f"/proc/{process.pid}/environ").read_bytes()
        for process in (
            psutil.Process(running.running.process.pid),
            *psutil.Process(running.running.process.pid).children(),
        )
    ]
    assert [b"PYTHONMALLOC=malloc" in each for each in environments] == [True, True, False]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("content", ["a file", "a folder"])
def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """`dev` makes its files in a folder of its own, and touches no other."""
    state = tmp_path / "precious"
    if content == "a file":
        state.write_text("precious")
    else:
        state.mkdir()
        (state / "precious").touch()
    assert main(["dev", "--state", str(state)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"ironwork-server: {state} holds something else: give --state")
    assert not list(tmp_path.rglob("DEV"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "nowhere"],
        ["--listen", "127.0.0.1:65536"],
        ["--upstream", "https://evil.example"],
        ["--upstream", "http://10.0.0.1:80"],
        ["--upstream", "https://api.anthropic.com/v1"],
        ["--upstream", "https://user@api.anthropic.com"],
        ["--upstream", "x"],
    ],
)
def test_wrong_options_of_dev_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """An address or upstream that cannot be is named by its option, before anything is made."""
    assert main(["dev", "--state", str(tmp_path / "state"), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ironwork-server: {arguments[0]}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("upstream", "tls"),
    [
        ("https://api.anthropic.com", True),
        ("https://api.anthropic.com/", True),
        ("http://127.0.0.1:8080", False),
        ("http://localhost:8080", False),
    ],
)
def test_upstreams_of_dev(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: str, tls: bool
) -> None:
    """Besides the simulator: Anthropic itself, or anything on this machine."""
    given: list[UpstreamEndpoint] = []

    async def served(*arguments: Any, as_json: bool) -> None:
        given.append(arguments[2])

    monkeypatch.setattr("ironwork_server.app.logs.configure", lambda _: None)
    monkeypatch.setattr(dev_serving, "_dev", served)
    assert main(["dev", "--state", str(tmp_path), "--upstream", upstream]) == 0
    assert given[0].tls is tls
    assert (given[0] == ANTHROPIC) is tls
