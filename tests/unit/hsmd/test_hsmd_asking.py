"""Asking devices: whose failure it is when one cannot be asked, and what cannot be recorded."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fixtures.hsmd import entries_of
from ironwork_audit import INTENT, Event
from ironwork_hsm import BackendOptions, Busy, ConfigurationError, HsmError, Unavailable, WrappedKey
from ironwork_hsm.daemon.operations import Operations
from ironwork_hsm.daemon.rate import Rates
from ironwork_hsm.daemon.record import LogRecord, open_record
from ironwork_hsm.daemon.session import Session, SessionLimits
from ironwork_hsm.daemon.turns import Asker
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import LENGTH, Malformed
from ironwork_hsm.remote.connection import Connection
from ironwork_hsm.remote.framing import FrameBuffer
from ironwork_hsm.remote.link import TimedOut
from ironwork_hsm.remote.place import Peer, _open_above, folder_owner
from ironwork_hsm.remote.wire import Frame, KeyInfo, Kind

NAME = "pkcs11:token=t;object=o"
PEER = Peer(pid=1, uid=1001)


class Device:
    """Stands where a device does: answers DONE, or is too busy to be asked."""

    name = NAME
    problem: HsmError | None = None

    def __init__(self) -> None:
        self.info = wire.Info((KeyInfo(NAME, 1, "aes-256-gcm"),), None, None)
        self.busy_for: set[Kind] = set()
        self.late = False
        self.replaced: list[HsmError] = []

    def send(
        self, asker: Asker, build: Callable[[int], bytes], answered: Callable[[Any], None]
    ) -> None:
        frame = wire.parse_body(memoryview(build(1))[LENGTH.size :])
        if frame.kind in self.busy_for:
            raise Busy("full")
        if self.late:
            answered(TimedOut("late"))
            return
        answered(wire.parse_body(memoryview(wire.done(1))[LENGTH.size :]))

    def replace(self, problem: HsmError) -> None:
        self.replaced.append(problem)

    def learn(self, info: wire.Info) -> None:
        self.info = info


@pytest.fixture
async def record(tmp_path: Path) -> AsyncIterator[LogRecord]:
    """A real record in tmp_path/record."""
    made = open_record(tmp_path / "record", "hsm/one")
    yield made
    await made.close()


def asking(record: LogRecord) -> tuple[Operations, Device]:
    operations, device = Operations(record, Rates(1000, 1000)), Device()
    operations.use([device], None)  # type: ignore[list-item]
    return operations, device


def event() -> Event:
    return Event(phase=INTENT, operation="hsm.unwrap", correlation_id="c", time=datetime.now(UTC))


def frame(data: bytes) -> Frame:
    return wire.parse_body(memoryview(data)[LENGTH.size :])


async def test_a_device_that_is_too_busy_to_be_tried_is_not_replaced(record: LogRecord) -> None:
    """A trial for which there is no room says nothing of the device."""
    operations, device = asking(record)
    device.busy_for = {Kind.CHECK}
    operations.try_device(device)  # type: ignore[arg-type]
    await operations.settle(20)
    assert device.replaced == []


async def test_a_trial_that_is_late_replaces_nothing(record: LogRecord) -> None:
    """A device that is slow is not sick; whether it is silent it looks itself."""
    operations, device = asking(record)
    device.late = True
    operations.try_device(device)  # type: ignore[arg-type]
    await operations.settle(20)
    assert device.replaced == []


async def test_refusals_of_many_sorts_are_all_counted(record: LogRecord, tmp_path: Path) -> None:
    """What is refused beyond 64 users and reasons in one window is one entry with the rest."""
    operations, _ = asking(record)
    for uid in range(100):
        operations.count_refusal(Peer(pid=1, uid=uid), "PEER_REFUSED")
    operations.count_refusal(Peer(pid=1, uid=3), "PEER_REFUSED")
    await operations.settle(20)
    await record.append(event())
    told = [entry.event for entry in entries_of(tmp_path / "record")][:-1]
    assert len(told) == 65
    assert sum(int(one.details["count"]) for one in told) == 101
    (rest,) = [one for one in told if one.reason == "OTHERS"]
    assert (rest.principal, rest.details["count"]) == ("", 36)


class Door:
    """Lets everybody in."""

    def admit(self, session: Session, peer: Peer) -> str | None:
        return None

    def leave(self, session: Session) -> None:
        pass

    def may_use_keys(self, peer: Peer) -> bool:
        return False


@asynccontextmanager
async def connected(
    operations: Operations, pipelined: int
) -> AsyncIterator[tuple[Session, asyncio.Transport, socket.socket]]:
    """A session, its transport, and the client's socket."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        theirs.setblocking(False)
        transport, session = await loop.connect_accepted_socket(
            lambda: Session(Door(), operations, lambda: b"{}", SessionLimits(pipelined)), ours
        )
        yield session, transport, theirs
        transport.abort()
        await asyncio.sleep(0)


def receive(session: Session, data: bytes) -> None:
    """As one read of its transport."""
    session.get_buffer(-1)[: len(data)] = data
    session.buffer_updated(len(data))


async def answers(client: socket.socket, count: int) -> list[Frame]:
    """So many frames."""
    buffer, found = FrameBuffer(), []
    while len(found) < count:
        read = await asyncio.get_running_loop().sock_recv_into(client, buffer.room())
        found += [Frame(one.kind, one.number, memoryview(b"")) for one in buffer.received(read)]
    return found


@pytest.mark.parametrize("asked", [wire.plain(Kind.STATUS, 2), wire.hello(2)])
async def test_what_is_told_without_a_device_is_bounded(record: LogRecord, asked: bytes) -> None:
    """HELLO and STATUS have a rate for each user, and count as requests without an answer."""
    operations = Operations(record, Rates(1e-9, 5))
    operations.use([Device()], None)  # type: ignore[list-item]
    async with connected(operations, 4) as (session, transport, client):
        receive(session, wire.hello(1) + asked * 9)
        assert not transport.is_reading()
        kinds = [one.kind for one in await answers(client, 10)]
        assert transport.is_reading()
    assert kinds.count(Kind.FAILED) == 5
    assert kinds[5:] == [Kind.FAILED] * 5
    await operations.settle(20)


async def test_a_record_that_fails_is_not_the_devices_fault(tmp_path: Path) -> None:
    """Where a trial cannot be recorded it is not made, and a sound device is kept."""
    record = open_record(tmp_path / "record", "hsm/one")
    operations, device = asking(record)
    await record.close()
    operations.try_device(device)  # type: ignore[arg-type]
    await operations.settle(20)
    assert device.replaced == []


async def test_an_answer_leaves_also_where_nothing_more_can_be_asked(record: LogRecord) -> None:
    """A device too busy to say what it offers does not keep an answer from its caller."""
    operations, device = asking(record)
    device.busy_for = {Kind.HELLO}
    answers: list[bytes] = []
    operations.take(PEER, 1, frame(wire.check(7)), answers.append)
    await operations.settle(20)
    assert [frame(answer).kind for answer in answers] == [Kind.DONE]


async def test_what_cannot_be_recorded_is_malformed(record: LogRecord) -> None:
    """A request whose fields no event can hold is refused as one that breaks the protocol."""
    operations, _ = asking(record)
    wrapped = WrappedKey(NAME, 1, "aes\n256", b"blob")
    with pytest.raises(Malformed):
        operations.take(PEER, 1, frame(wire.unwrap(7, wrapped, b"", "")), lambda _: None)


async def test_a_full_backlog_is_no_stranger(tmp_path: Path) -> None:
    """A process that is slow to take connections is unavailable, not taken for another one."""
    place = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(place))
        listener.listen(0)
        first.connect(str(place))
        with pytest.raises(Unavailable, match="slow"):
            await Connection(place, BackendOptions(slow_deadline_s=0.1)).open()


def test_a_folder_that_a_stranger_could_have_made_is_refused(tmp_path: Path) -> None:
    """Another user's folder below one that all may write to could be anybody's: not used."""
    above = tmp_path / "all"
    above.mkdir()
    above.chmod(0o1777)
    place = above / "hsmd" / "hsm.sock"
    place.parent.mkdir(mode=0o755)
    owner = os.geteuid() or 4711
    os.chown(place.parent, owner, -1)
    assert folder_owner(place, geteuid=lambda: owner) == owner
    with pytest.raises(ConfigurationError, match="above"):
        folder_owner(place, geteuid=lambda: owner + 1)


def test_a_folder_below_closed_ones_may_be_another_users() -> None:
    """Where nobody else can make the folder, its owner is whom the operator chose."""
    assert _open_above(Path("/usr/lib")) is None
    assert folder_owner(Path("/usr/lib/hsm.sock"), geteuid=lambda: 4711) == 0


def test_a_childs_standard_error_holds_no_foreign_text() -> None:
    """What other libraries log in a device's process is shown by its place only, as JSON."""
    ours, theirs = socket.socketpair()
    command = [
        sys.executable, "-m", "ironwork_hsm.daemon.child", "wrapper",
        "--parent", str(os.getpid()), "--lanes", "1", "--deadline", "1", "--queue", "1",
    ]  # fmt: skip
    with theirs, ours:
        child = subprocess.Popen(command, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True)
        ours.sendall(LENGTH.pack(7) + b"pkcs11:" + LENGTH.pack(5) + bytes(5))
        _, errors = child.communicate(timeout=60)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert [line["error"] for line in lines] == ["Malformed"]
