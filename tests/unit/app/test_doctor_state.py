"""Doctor on the database, the audit log, the machine and a server: each check where it fails."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.doctor import PID, Look, Sick, of
from fixtures.journal_events import made
from fixtures.signing import MakeSigningKey
from fixtures.simulator import TestSimulator
from ironwork_hsm.signers import open_signer
from ironwork_server import store
from ironwork_server.app import doctor_state
from ironwork_server.app.doctor_report import Status
from ironwork_server.custody.checkpoints import Checkpointer
from ironwork_server.journal import FileJournal
from ironwork_server.store import open_store
from ironwork_server.upstream.endpoint import UpstreamEndpoint


def database(sick: Sick) -> Path:
    return sick.production.folder / "db" / "keys.db"


def audit(sick: Sick) -> Path:
    return sick.production.folder / "audit"


def no_database(sick: Sick) -> None:
    database(sick).unlink()


def dev_database(sick: Sick) -> None:
    store.mark(sick.production.settings["store"]["url"], store.DEV)


def database_open_to_others(sick: Sick) -> None:
    database(sick).chmod(0o644)


def database_folder_open_to_others(sick: Sick) -> None:
    database(sick).parent.chmod(0o755)


def database_of_somebody_else(sick: Sick) -> None:
    os.chown(database(sick), 12345, -1)


def audit_open_to_others(sick: Sick) -> None:
    audit(sick).chmod(0o750)


def no_signing_key(sick: Sick) -> None:
    del sick.production.settings["audit"]["signing_key"]


def signing_by_the_master_token(sick: Sick) -> None:
    sick.production.settings["audit"]["signing_key"] = sick.production.token.uri_for("log")


def forged_checkpoint(sick: Sick) -> None:
    (audit(sick) / "checkpoint").write_text("keys.acme.example/one\n1\nAAAA\n\n— nobody AAAA\n")


def clock_behind(sick: Sick) -> None:
    later = time.time() + 3600
    os.utime(database(sick), (later, later))


def grpc_trace(sick: Sick) -> None:
    sick.environ["GRPC_TRACE"] = "all"


@pytest.mark.parametrize(
    ("break_it", "check", "says"),
    [
        (no_database, "store", "db upgrade"),
        (dev_database, "store.dev", "made by `ironwork-server dev`"),
        (database_open_to_others, "store.file", "open to group or others"),
        (database_folder_open_to_others, "store.folder", "open to group or others"),
        (database_of_somebody_else, "store.file", "belongs to user 12345"),
        (audit_open_to_others, "audit.folder", "open to group or others"),
        (no_signing_key, "audit.signing_key", "audit.signing_key is not set"),
        (signing_by_the_master_token, "audit.signing_key", "master key's token"),
        (forged_checkpoint, "audit.checkpoint", ""),
        (clock_behind, "clock", "s behind the newest file"),
        (grpc_trace, "environment", "GRPC_TRACE"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_what_fails(
    sick: Sick, look: Look, break_it: Callable[[Sick], None], check: str, says: str
) -> None:
    """Each of these fails, by name."""
    break_it(sick)
    assert says in of(await look(), Status.FAIL)[check]


def no_audit_folder(sick: Sick) -> None:
    audit(sick).rmdir()


def swap(sick: Sick) -> None:
    with (sick.proc / "swaps").open("a") as file:
        file.write("/dev/sda2 partition 8388604 0 -2\n")


def traceable(sick: Sick) -> None:
    (sick.proc / "sys/kernel/yama/ptrace_scope").write_text("0\n")


def keeps_freed(sick: Sick) -> None:
    sick.production.settings["memory"] = {"overwrite_freed": False}


def as_root(sick: Sick) -> None:
    sick.uid = 0


@pytest.mark.parametrize(
    ("break_it", "check", "says"),
    [
        (no_audit_folder, "audit.folder", "not there yet"),
        (swap, "memory.swap", "memory can reach a disk"),
        (traceable, "memory.ptrace", "may trace each other"),
        (keeps_freed, "memory.allocator", "told off"),
        (as_root, "user", "runs as root"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_what_warns(
    sick: Sick, look: Look, break_it: Callable[[Sick], None], check: str, says: str
) -> None:
    """Each of these warns."""
    break_it(sick)
    assert says in of(await look(), Status.WARN)[check]


@pytest.mark.parametrize(
    ("free", "status"), [(1 << 20, Status.FAIL), (1 << 29, Status.WARN), (1 << 40, Status.OK)]
)
async def test_room_on_the_disk(
    look: Look, monkeypatch: pytest.MonkeyPatch, free: int, status: Status
) -> None:
    """Little room for database and log warns, hardly any fails."""

    class Usage:
        pass

    Usage.free = free  # type: ignore[attr-defined]
    monkeypatch.setattr(doctor_state.shutil, "disk_usage", lambda _: Usage)
    assert {"store.space", "audit.space"} <= set(of(await look(), status))


@pytest.mark.parametrize(("synchronised", "status"), [(False, Status.WARN), (None, Status.OK)])
async def test_a_clock_that_nothing_sets(
    look: Look, monkeypatch: pytest.MonkeyPatch, synchronised: bool | None, status: Status
) -> None:
    """A clock that the kernel says nothing sets warns; where it cannot be asked it does not."""
    monkeypatch.setattr(doctor_state, "_synchronised", lambda: synchronised)
    assert "clock" in of(await look(), status)


async def test_who_holds_the_log(sick: Sick, look: Look) -> None:
    """The log's holder is named, by the kernel's table, and is left alone."""
    lock = audit(sick) / "lock"
    lock.write_text("77\n")
    line = f"1: FLOCK  ADVISORY  WRITE 77 fe:00:{lock.stat().st_ino} 0 EOF\n"
    (sick.proc / "locks").write_text(line)
    assert of(await look(), Status.OK)["audit.lock"] == "held by process 77"


async def test_a_running_server(sick: Sick, look: Look) -> None:
    """With --pid the server itself is looked at; a sound one passes."""
    sick.server()
    said = of(await look(pid=PID), Status.OK)
    assert {"server.core", "server.swap", "server.traced"} <= set(said)


@pytest.mark.parametrize(
    ("state", "check"),
    [({"core": 1}, "server.core"), ({"swap": 8}, "server.swap"), ({"tracer": 5}, "server.traced")],
)
async def test_a_server_that_leaks(
    sick: Sick, look: Look, state: dict[str, int], check: str
) -> None:
    """A server that may dump its memory, is in swap, or is traced, fails."""
    sick.server(**state)
    assert check in of(await look(pid=PID), Status.FAIL)


async def test_a_server_that_is_not_there(look: Look) -> None:
    """A pid that nobody has fails."""
    assert "no process" in of(await look(pid=PID), Status.FAIL)["server"]


async def test_a_checkpoint_of_another_key(
    sick: Sick, look: Look, make_signing_key: MakeSigningKey
) -> None:
    """A log that was signed by another key than the settings' fails; its own key's passes, and is
    said to be unwitnessed.
    """
    settings = sick.production.settings["audit"]
    signer = await open_signer(settings["signing_key"])
    journal = FileJournal.open(Path(settings["folder"]), settings["origin"])
    await journal.append(made())
    store = open_store(sick.production.settings["store"]["url"])
    checkpointer = Checkpointer(journal, signer, store)
    checkpointer.stop()
    await checkpointer.run()
    await journal.close()
    await signer.close()
    await store.close()
    said = await look()
    assert "signed by audit.signing_key" in of(said, Status.OK)["audit.checkpoint"]
    assert "UNWITNESSED" in of(said, Status.WARN)["audit.witness"]
    settings["signing_key"] = make_signing_key().uri
    assert "audit.checkpoint" in of(await look(), Status.FAIL)


async def test_the_upstream_is_reached_only_when_asked(
    look: Look, simulator: TestSimulator
) -> None:
    """With --upstream a connection is made and verified, and nothing is sent."""
    endpoint = UpstreamEndpoint(
        "api.anthropic.com",
        simulator.port,
        ca_file=simulator.ca_file,
        connect_address="127.0.0.1",
    )
    asked = "upstream api.anthropic.com"
    assert asked not in of(await look(endpoint=endpoint), Status.OK)
    assert "nothing was sent" in of(await look(upstream=True, endpoint=endpoint), Status.OK)[asked]
    untrusted = UpstreamEndpoint("api.anthropic.com", simulator.port, connect_address="127.0.0.1")
    said = of(await look(upstream=True, endpoint=untrusted), Status.FAIL)[asked]
    assert "UPSTREAM_TLS_UNTRUSTED" in said
