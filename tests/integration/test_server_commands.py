"""The server's commands, as processes and as an operator sees them."""

from __future__ import annotations

import asyncio
import ctypes
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.agent import Agent, message_body
from fixtures.hsmd import entries_of
from fixtures.journal_events import entries
from fixtures.log_check import check_checkpoint
from fixtures.processes import Dev, command, dev, server
from fixtures.production import Production
from fixtures.softhsm import MakeToken
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_audit.tlog import KeyType, VerifierKey
from ironwork_client import AuditClient, KeyClient, PermissionDenied, Profile
from ironwork_server.cli import dev as dev_module
from ironwork_server.cli import leakcheck
from ironwork_server.cli.main import main
from ironwork_server.upstream.endpoint import ANTHROPIC, UpstreamEndpoint
from ironwork_simulator import Behaviour, Simulator

DEADLINE_S = 30.0


# --- master-key and db -----------------------------------------------------------------------


def test_the_first_steps_of_an_operator(
    production: Production, capsys: pytest.CaptureFixture[str]
) -> None:
    """`db status` is 1 until `db upgrade` is done; `master-key create` makes version 1 once,
    inside the HSM and on record; `list` shows it, as a table and as JSON.
    """
    config = ["--config", str(production.write())]

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, *config])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, said, _ = run("db", "status")
    assert (code, said.startswith("schema none")) == (1, True)
    assert "pending: " in said
    assert not (production.folder / "db" / "keys.db").exists()
    for _ in range(2):
        code, said, _ = run("db", "upgrade")
        assert (code, "pending" in said) == (0, False)
    assert run("db", "status")[:2] == (0, said)

    assert run("master-key", "list", "--json")[:2] == (0, "[]\n")
    code, said, _ = run("master-key", "create", "--json")
    assert code == 0
    (version,) = json.loads(said)
    assert (version["version"], version["label"]) == (1, "master")
    assert (version["sensitive"], version["extractable"]) == (True, False)
    assert (version["never_extractable"], version["local"]) == (True, True)
    code, said, wrong = run("master-key", "create")
    assert (code, said) == (1, "")
    assert wrong == "ironwork-server: The HSM holds this master key already; nothing was changed.\n"
    (listed,) = json.loads(run("master-key", "list", "--json")[1])
    assert version.items() <= listed.items()
    assert (listed["current"], listed["rows"], listed["retired"]) == (True, 0, False)
    code, table, _ = run("master-key", "list")
    assert code == 0
    assert table.startswith("pkcs11:token=")
    assert "version" in table
    assert "master" in table

    intent, outcome = (entry.event for entry in entries(production.folder / "audit-commands"))
    assert (intent.operation, intent.phase) == ("hsm.generate", "intent")
    assert (outcome.phase, outcome.success) == ("outcome", True)
    assert outcome.details["master_key_version"] == 1


def test_the_log_s_key_is_made_once(
    production: Production, make_token: MakeToken, capsys: pytest.CaptureFixture[str]
) -> None:
    """`audit-key create` makes it in its token, on record, and says the verifier key; `show` says
    the same, with `--commands` under the name of the operators' log; a second `create` changes
    nothing.
    """
    token = make_token()
    production.settings["audit"]["signing_key"] = token.uri_for("checkpoints")
    config = ["--config", str(production.write())]
    assert main(["audit-key", "show", *config]) == 1
    assert "holds no signing key" in capsys.readouterr().err
    assert main(["audit-key", "create", *config]) == 0
    said = capsys.readouterr().out
    key = VerifierKey.parse(said.strip())
    assert (key.name, key.type) == ("keys.acme.example/one", KeyType.ED25519)
    assert main(["audit-key", "show", *config]) == 0
    assert capsys.readouterr().out == said
    assert main(["audit-key", "show", "--commands", *config]) == 0
    of_commands = VerifierKey.parse(capsys.readouterr().out.strip())
    assert of_commands.name == "keys.acme.example/one/commands"
    assert of_commands.public == key.public
    assert main(["audit-key", "create", *config]) == 1
    assert "already" in capsys.readouterr().err
    found = [entry.event for entry in entries(production.folder / "audit")]
    assert [(event.operation, event.phase, event.success) for event in found] == [
        ("hsm.generate", "intent", None),
        ("hsm.generate", "outcome", True),
        ("hsm.generate", "intent", None),
        ("hsm.generate", "outcome", False),
    ]
    assert found[1].details["mechanism"] == "ed25519"
    (production.folder / "audit" / "journal.jsonl").write_text("")
    assert main(["audit-key", "create", *config]) == 1
    assert "older version" in capsys.readouterr().err


def test_commands_without_settings_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that needs settings names them, and none leaves a traceback."""
    monkeypatch.delenv("IRONWORK_CONFIG", raising=False)
    for arguments in (
        ["serve"],
        ["db", "status"],
        ["db", "upgrade"],
        ["master-key", "create"],
        ["master-key", "list"],
        ["audit-key", "create"],
        ["audit-key", "show"],
    ):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("ironwork-server: tls: is missing")
        assert "Traceback" not in said


def test_the_configuration_can_be_named_by_a_variable(
    production: Production,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """IRONWORK_CONFIG names the file; --config wins over it."""
    monkeypatch.setenv("IRONWORK_CONFIG", str(production.write()))
    assert main(["db", "status"]) == 1
    assert capsys.readouterr().out.startswith("schema none")
    assert main(["db", "status", "--config", "/nonexistent"]) == 1
    assert "/nonexistent: cannot be read" in capsys.readouterr().err


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """No command, an unknown one, or an unknown option."""
    for arguments in ([], ["reveal"], ["serve", "--upstream", "x"], ["master-key"]):
        with pytest.raises(SystemExit) as usage:
            main(arguments)
        assert usage.value.code == 2
    assert "usage: ironwork-server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyError("sk-ant-api03-canary"), 1, "an error of this program"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied."),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_no_error_leaves_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    says: str,
) -> None:
    """Whatever a command raises is one line without the error's own text, which could quote a
    secret.
    """

    def fail(_: object) -> object:
        raise raised

    monkeypatch.setattr("ironwork_server.cli.db.settings_from", fail)
    assert main(["db", "status"]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "canary" not in said
    assert "Traceback" not in said


# --- serve -----------------------------------------------------------------------------------


def test_serve_runs_on_what_is_not_dev(production: Production, make_token: MakeToken) -> None:
    """With a CA, a token and a database of its own the service starts, answers health over mutual
    TLS, denies reads of its memory, and drains and exits with 0 on SIGTERM.
    """
    production.token = make_token(with_key=True)
    production.settings["master_key"] = {"uris": [production.token.uri]}
    config = str(production.write())
    assert main(["db", "upgrade", "--config", config]) == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**production.token.env, "IRONWORK_LISTEN": address}
    with server(
        "serve", "--config", config, log=production.folder / "serve.log", env=env
    ) as running:
        credentials = grpc.ssl_channel_credentials(
            production.ca.certificate_pem,
            production.client.private_key_pem,
            production.client.certificate_pem,
        )
        with grpc.secure_channel(address, credentials) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(
                health_pb2.HealthCheckRequest(), timeout=DEADLINE_S, wait_for_ready=True
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        limits = Path(f"/proc/{running.process.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
        running.signal()
        assert running.wait() == 0
        names = [event["event"] for event in running.events()]
        assert names[0] == "memory.overwrites_freed"
        assert set(names[1:3]) == {"hsm.pin_in_server", "audit.unwitnessed"}
        assert names[3] == "service.serving"
        assert names[-2:] == ["signal.received", "service.draining"]
    operations = [entry.event.operation for entry in entries(production.folder / "audit")]
    # The last checkpoint covers all but its own signing.
    assert (operations[0], operations[-3:]) == (
        "service.start",
        ["service.stop"] + ["hsm.sign"] * 2,
    )
    assert check_checkpoint(production.folder / "audit", "keys.acme.example/one") == (
        len(operations) - 2
    )


PROBE = """
import ctypes, os, sys
from ironwork_server.app.hardening import deny_memory_reads
libc = ctypes.CDLL(None)
before = libc.prctl(3, 0, 0, 0, 0)
deny_memory_reads()
import resource
print(before, libc.prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE), flush=True)
sys.stdin.read()
"""


def test_another_process_of_the_same_user_cannot_read_its_memory() -> None:
    """The process is not dumpable: no core file, no /proc/PID/mem for the same user (root may)."""
    with subprocess.Popen(
        [sys.executable, "-c", PROBE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["1", "0", "0", "0"]
        # As root the read succeeds, whatever the flag says.
        if ctypes.CDLL(None).geteuid() != 0:
            with pytest.raises(PermissionError):
                Path(f"/proc/{process.pid}/mem").open("rb")  # noqa: SIM115  it does not open
        process.communicate()


# --- dev -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose making was killed in the middle: a token without its key, PINs that
    belong to none, an empty CA file and no database.
    """
    state = tmp_path_factory.mktemp("half") / "state"
    (state / "hsm" / "tokens" / "0123").mkdir(parents=True, mode=0o700)
    (state / "hsm" / "tokens" / "0123" / "token.object").write_bytes(b"half")
    (state / "hsm" / "pin").write_text("1234\n")
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
    files = [path for path in running.state.parent.rglob("*") if path.is_file()]
    assert len(files) > 10
    for key in running.keys.values():
        assert not leakcheck.search(key.encode(), files)


def test_dev_leaves_the_master_key_s_pin_to_the_hsm_process(running: Dev) -> None:
    """The server asks the HSM process: one child of that process is logged in to the master key's
    token, and every wrap and unwrap is on that process' own record. (The server itself is logged in
    to the token of the audit log's key, and to no other.)
    """
    server = psutil.Process(running.running.process.pid)
    library = b"libsofthsm2.so"
    holding = [
        process.pid
        for process in server.children(recursive=True)
        if library in Path(f"/proc/{process.pid}/maps").read_bytes()
    ]
    assert len(holding) == 1
    with AuditClient(Profile.load(running.profile("auditor"))) as auditor:
        asked = {
            (record.parsed()["metadata"]["correlation_uid"], record.parsed()["api"]["operation"])  # type: ignore[index, call-overload]
            for record in auditor.entries()
            if b'"hsm.wrap"' in record.event or b'"hsm.unwrap"' in record.event
        }
    done = {
        (entry.event.correlation_id, entry.event.operation)
        for entry in entries_of(running.state / "hsmd" / "record")
    }
    assert asked
    assert asked <= done


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
    monkeypatch.setattr(dev_module, "_dev", served)
    assert main(["dev", "--state", str(tmp_path), "--upstream", upstream]) == 0
    assert given[0].tls is tls
    assert (given[0] == ANTHROPIC) is tls


# --- restart and drain -----------------------------------------------------------------------


async def connect(started: Dev, role: str = "agent") -> grpc.aio.Channel:
    """A connection as this role."""
    folder = started.state / "profiles"
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(),
        (folder / f"{role}-key.pem").read_bytes(),
        (folder / f"{role}.pem").read_bytes(),
    )
    return grpc.aio.secure_channel(
        started.target,
        credentials,
        [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)],
    )


async def held(started: Dev, simulator: Simulator) -> tuple[Agent, Any]:
    """A streamed answer that has begun and goes on when the hold is released."""
    hold = simulator.hold()
    simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    agent = Agent(keys_pb2_grpc.KeyServiceStub(await connect(started)), deadline_s=DEADLINE_S)
    await agent.start()
    await agent.begin(body=message_body(stream=True))
    assert (await agent.read()).WhichOneof("message") == "head"
    return agent, hold


async def went_away(agent: Agent) -> None:
    """Read up to the server's GoAway."""
    while True:
        message = await agent.read()
        if message.WhichOneof("message") == "go_away":
            assert message.go_away.reason == keys_pb2.GoAway.REASON_DRAIN
            return


async def test_a_restart_keeps_keys_and_a_drain_finishes_calls(
    tmp_path: Path, plain_simulator: Simulator
) -> None:
    """SIGTERM during a streamed answer: the agent is asked to reconnect, the answer comes whole,
    the server exits with 0. Started again on the same folder, it serves with the same key. A
    second signal does not wait for what is in flight.
    """
    upstream = f"http://127.0.0.1:{plain_simulator.port}"
    state = tmp_path / "state"
    with dev(state, "--upstream", upstream) as first:
        assert first.keys == {}
        with KeyClient(Profile.load(first.profile("admin"))) as admin:
            added = await asyncio.to_thread(admin.add, plain_simulator.make_key(), "kept")
        agent, hold = await held(first, plain_simulator)
        first.running.signal()
        await went_away(agent)
        hold.release()
        answer = await agent.answer()
        assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
        assert b"message_stop" in answer.body
        assert await asyncio.to_thread(first.running.wait) == 0
        assert first.running.log.read_text().count('"level": "error"') == 0
    with dev(state, "--upstream", upstream) as second:
        agent, _ = await held(second, plain_simulator)
        second.running.signal()
        await went_away(agent)
        second.running.signal()
        assert await asyncio.to_thread(second.running.wait) == -signal.SIGTERM
    served = plain_simulator.requests[-1].key
    assert served is not None
    assert served.endswith(added.mask[-4:])
