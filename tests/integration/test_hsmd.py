"""The HSM process, as a process: what clients get, what they cannot do, and what is on record."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.hsmd import Hsmd, MakeHsmd, entries_of
from fixtures.signing import MakeSigningKey, verify
from fixtures.softhsm import MakeToken, opened
from ironwork_audit.log import LogError
from ironwork_hsm import (
    BackendOptions,
    BlobRejected,
    Busy,
    ConfigurationError,
    FrontsKeys,
    HsmError,
    KeyCreator,
    KeyMissing,
    Unavailable,
    open_backend,
)
from ironwork_hsm.remote import RemoteKeyWrapper, connection, open_unix, wire
from ironwork_hsm.remote.place import Peer, peer_of
from ironwork_hsm.remote.wire import Kind
from ironwork_hsm.signers import open_signer

CONTEXT = b"workspace\x00key-7"
PATIENT = BackendOptions(deadline_s=30, slow_deadline_s=60)


async def connect(hsmd: Hsmd, *, allow_missing: bool = False) -> RemoteKeyWrapper:
    return await open_unix(hsmd.uri, allow_missing=allow_missing, options=PATIENT)


def until_recorded(hsmd: Hsmd, reference: str, count: int) -> None:
    """Wait until so many intents with this reference are durable."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(LogError, OSError, ValueError):  # cut while it is being written
            found = [entry.event.correlation_id for entry in hsmd.record()]
            if found.count(reference) >= count:
                return
    raise TimeoutError(reference)


def raw(hsmd: Hsmd) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(30)
    client.connect(str(hsmd.socket))
    return client


async def test_moving_a_key_into_the_process_needs_no_rewrapping(shared_hsmd: Hsmd) -> None:
    """What a backend in this process wrapped opens through the HSM process, and the other way."""
    remote = await connect(shared_hsmd)
    async with opened(shared_hsmd.token.uri) as local:
        here, there = await local.wrap(bytes(32), CONTEXT), await remote.wrap(bytes(32), CONTEXT)
        assert (remote.name, remote.current_version, remote.mechanism) == (
            local.name,
            local.current_version,
            local.mechanism,
        )
        assert await remote.unwrap(here, CONTEXT) == await local.unwrap(there, CONTEXT)
        assert await remote.versions() == await local.versions()
    await remote.close()


async def test_a_client_cannot_make_keys(shared_hsmd: Hsmd) -> None:
    """Creating versions is not offered over the socket: the protocol has no word for it."""
    remote = await connect(shared_hsmd)
    assert not isinstance(remote, KeyCreator)
    assert not any("CREATE" in kind.name or "GENERATE" in kind.name for kind in Kind)
    await remote.close()


async def test_every_operation_is_on_record(make_hsmd: MakeHsmd) -> None:
    """Each operation has its intent and its outcome: who asked, by the kernel's word, for what,
    under which correlation id, and how it ended; and nothing of a data key.
    """
    hsmd = make_hsmd()
    remote = await connect(hsmd)
    data_key = os.urandom(32)
    wrapped = await remote.wrap(data_key, CONTEXT, reference="call-1")
    await remote.unwrap(wrapped, CONTEXT, reference="call-2")
    with pytest.raises(BlobRejected):
        await remote.unwrap(wrapped, b"another", reference="call-3")
    await remote.versions()
    await remote.close()
    assert hsmd.end() == 0
    events = [entry.event for entry in hsmd.record()]
    done = [
        (event.operation, event.correlation_id, event.success, event.reason)
        for event in events
        if event.phase == "outcome"
    ]
    own, checked = [
        event.correlation_id
        for event in events
        if (event.operation, event.phase) == ("hsm.probe", "intent")
    ]
    listed = next(event.correlation_id for event in events if event.operation == "hsm.list")
    assert done[1:] == [
        ("hsm.probe", own, True, ""),
        ("hsm.probe", checked, True, ""),
        ("hsm.wrap", "call-1", True, ""),
        ("hsm.unwrap", "call-2", True, ""),
        ("hsm.unwrap", "call-3", False, "BLOB_REJECTED"),
        ("hsm.list", listed, True, ""),
    ]
    assert (done[0][0], done[0][2]) == ("hsm.open", True)
    for event in events[4:]:
        assert (event.principal, event.peer) == (f"uid:{os.getuid()}", f"unix:pid:{os.getpid()}")
    unwrap = next(event for event in events if event.correlation_id == "call-2")
    assert unwrap.phase == "intent"
    assert unwrap.details["backend"] == wrapped.backend
    assert unwrap.details["master_key_version"] == 1
    intents = {entry.sequence for entry in hsmd.record() if entry.event.phase == "intent"}
    assert {event.intent_index for event in events if event.phase == "outcome"} == intents
    for path in (hsmd.folder / "record").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert data_key not in content
        assert data_key.hex().encode() not in content


async def test_unwraps_are_bounded_in_rate(make_hsmd: MakeHsmd) -> None:
    """A client that asks for more than its rate is told Busy, and how much is on record; another
    sort of operation has a bucket of its own.
    """
    hsmd = make_hsmd(limits={"operations_per_s": 1, "burst": 5})
    remote = await connect(hsmd)
    wrapped = await remote.wrap(bytes(32), CONTEXT)
    results = await asyncio.gather(
        *(remote.unwrap(wrapped, CONTEXT) for _ in range(50)), return_exceptions=True
    )
    busy = [result for result in results if isinstance(result, Busy)]
    assert all(result == bytes(32) or isinstance(result, Busy) for result in results)
    assert 40 <= len(busy) <= 48
    await remote.close()
    assert hsmd.end() == 0
    (refused,) = [entry.event for entry in hsmd.record() if entry.event.operation == "hsm.refused"]
    assert (refused.reason, refused.details["count"]) == ("BUSY", len(busy))


async def test_nobody_is_held_up_by_how_much_another_asks(make_hsmd: MakeHsmd) -> None:
    """A connection fills the queue with unwraps of unknown versions: another one's have their turn
    in between, none is refused, and no device is replaced for it.
    """
    hsmd = make_hsmd(limits={"queue": 128})
    greedy, other = await connect(hsmd), await connect(hsmd)
    wrapped = await other.wrap(bytes(32), CONTEXT)
    device = (await asyncio.to_thread(hsmd.status))["devices"][0]
    os.kill(device["pid"], signal.SIGSTOP)
    unknown = [replace(wrapped, key_version=2 + number) for number in range(400)]
    flood = asyncio.gather(
        *(greedy.unwrap(one, CONTEXT, reference="greedy") for one in unknown),
        return_exceptions=True,
    )
    await asyncio.to_thread(until_recorded, hsmd, "greedy", 256)
    asked = asyncio.gather(*(other.unwrap(wrapped, CONTEXT, reference="other") for _ in range(5)))
    await asyncio.to_thread(until_recorded, hsmd, "other", 5)
    os.kill(device["pid"], signal.SIGCONT)
    assert await asked == [bytes(32)] * 5
    assert all(isinstance(result, HsmError) for result in await flood)
    await greedy.close()
    await other.close()
    assert hsmd.status()["devices"][0]["starts"] == 1
    assert hsmd.end() == 0
    served = [
        entry.event.correlation_id
        for entry in hsmd.record()
        if entry.event.phase == "outcome" and entry.event.reason != "BUSY"
    ]
    assert max(at for at, name in enumerate(served) if name == "other") < 100


def test_a_childs_arguments_hold_no_uri(shared_hsmd: Hsmd) -> None:
    """What every user of the machine can read of a device's process names no device and no file."""
    pid = shared_hsmd.status()["devices"][0]["pid"]
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"ironwork_hsm.daemon.child" in arguments
    assert b"pkcs11:" not in arguments
    assert os.fsencode(shared_hsmd.token.pin_file) not in arguments


def test_creating_tries_a_refused_pin_once(make_hsmd: MakeHsmd, make_token: MakeToken) -> None:
    """`create` remembers a refusal as the process does, and keeps to what either remembers."""
    token = make_token()
    right = token.pin_file.read_text()
    token.pin_file.write_text("wrong-pin-000\n")
    hsmd = make_hsmd(start=False, token=token)
    first, second = hsmd.run("create"), hsmd.run("create")
    assert (first.returncode, second.returncode) == (1, 1)
    assert "until its file changes" in second.stderr
    assert "until its file changes" not in first.stderr
    token.pin_file.write_text(right)
    assert hsmd.run("create").returncode == 0
    assert not list((hsmd.folder / "state").glob("pin-refused-*"))


async def test_a_user_off_the_list_uses_no_key(make_hsmd: MakeHsmd) -> None:
    """The process' own user may ask how it stands, and unless it is listed for nothing else."""
    hsmd = make_hsmd(allowed_uids=[os.getuid() + 1])
    with pytest.raises(ConfigurationError, match="allowed_uids"):
        await connect(hsmd)
    assert hsmd.status()["healthy"] is True
    assert hsmd.end() == 0
    operations = {entry.event.operation for entry in hsmd.record()}
    assert operations == {"hsm.open", "hsm.probe", "hsm.refused"}


async def test_two_backends_the_first_wraps_and_both_unwrap(
    make_hsmd: MakeHsmd, make_token: MakeToken
) -> None:
    """The process may front several master keys: that is how one moves to another device."""
    old, new = make_token(with_key=True), make_token(with_key=True)
    async with opened(old.uri) as local:
        before = await local.wrap(bytes(32), CONTEXT)
    hsmd = make_hsmd(token=new, backends=[new.uri, old.uri])
    remote = await connect(hsmd)
    assert isinstance(remote, FrontsKeys)
    assert remote.names == {remote.name, before.backend}
    after = await remote.wrap(bytes(32), CONTEXT)
    assert after.backend == remote.name != before.backend
    assert await remote.unwrap(before, CONTEXT) == await remote.unwrap(after, CONTEXT)
    await remote.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 4096,
        wire.check(1),  # no greeting
        wire.frame(Kind.HELLO, 1, b"ironwork-hsm/9"),
        wire.hello(1) + wire.frame(Kind.WRAP, 2, b"", bytes(31), b""),
        wire.hello(1) + wire.frame(Kind.UNWRAP, 2),
        wire.hello(1) + wire.done(2),
    ],
)
def test_garbage_ends_its_own_connection_only(shared_hsmd: Hsmd, sent: bytes) -> None:
    """Whoever does not speak the protocol is cut off, and the others do not notice."""
    with raw(shared_hsmd) as other, raw(shared_hsmd) as client:
        other.sendall(wire.hello(1))
        assert other.recv(1)
        client.sendall(sent)
        received = b""
        try:
            while piece := client.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
        # At most the greeting's answer came back.
        assert received.count(b"ironwork") == 0
        other.sendall(wire.hello(2))
        assert other.recv(65536)


def test_a_reader_that_never_reads_is_bounded(shared_hsmd: Hsmd) -> None:
    """A client that sends and never reads is no longer read from, long before it costs memory."""
    with raw(shared_hsmd) as client:
        client.sendall(wire.hello(0))
        client.settimeout(2)
        sent, chunk = 0, b"".join(wire.plain(Kind.STATUS, 1) for _ in range(1000))
        with contextlib.suppress(TimeoutError):
            while sent < 64 * 2**20:
                sent += client.send(chunk)
        assert sent < 2 * 2**20
    assert shared_hsmd.status()["healthy"] is True


async def test_sigterm_answers_what_is_under_way_and_ends(make_hsmd: MakeHsmd) -> None:
    """SIGTERM under load: no wrong answer, every failure typed, exit 0, the socket is gone."""
    hsmd = make_hsmd()
    remote = await connect(hsmd)
    wrapped = await remote.wrap(bytes(32), CONTEXT)
    calls = [asyncio.ensure_future(remote.unwrap(wrapped, CONTEXT)) for _ in range(300)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    ended = asyncio.to_thread(hsmd.end)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert await ended == 0
    assert all(result == bytes(32) or isinstance(result, Unavailable) for result in results)
    assert not hsmd.socket.exists()
    await remote.close()


async def test_clients_come_back_after_a_kill(make_hsmd: MakeHsmd) -> None:
    """The process killed and started anew under load: calls fail typed or wait, no plaintext is
    wrong, and the same client goes on.
    """
    hsmd = make_hsmd()
    remote = await connect(hsmd)
    data_keys = [os.urandom(32) for _ in range(20)]
    wrapped = [await remote.wrap(key, CONTEXT) for key in data_keys]
    stop = asyncio.Event()
    outcomes: list[object] = []

    async def load(number: int) -> None:
        while not stop.is_set():
            try:
                assert await remote.unwrap(wrapped[number], CONTEXT) == data_keys[number]
                outcomes.append("right")
            except Unavailable:
                outcomes.append("unavailable")

    tasks = [asyncio.ensure_future(load(number)) for number in range(20)]
    async with asyncio.timeout(30):
        while outcomes.count("right") < 100:  # noqa: ASYNC110  as below
            await asyncio.sleep(0)
    await asyncio.to_thread(hsmd.end, signal.SIGKILL)
    await asyncio.to_thread(hsmd.start)
    before = outcomes.count("right")
    async with asyncio.timeout(30):
        while outcomes.count("right") < before + 100:  # noqa: ASYNC110  the tasks' own pace
            await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*tasks)
    await remote.close()
    # The record was repaired where the kill cut it, and goes on without a gap.
    assert hsmd.end() == 0
    assert [entry.sequence for entry in hsmd.record()] == list(range(len(hsmd.record())))


async def test_an_operator_creates_versions(make_hsmd: MakeHsmd, make_token: MakeToken) -> None:
    """`create` makes version 1 once, and further ones when told; both are on record, and a running
    process takes a new version when it is told to look.
    """
    hsmd = make_hsmd(start=False, token=make_token())
    hsmd.start()
    remote = await connect(hsmd, allow_missing=True)
    with pytest.raises(KeyMissing, match="ironwork-hsmd create"):
        _ = remote.current_version
    assert json.loads(hsmd.run("create").stdout) == {"version": 1}
    again = hsmd.run("create")
    assert (again.returncode, again.stdout) == (1, "")
    assert "already" in again.stderr
    await remote.versions()
    assert (await remote.wrap(bytes(32), CONTEXT)).key_version == remote.current_version == 1
    assert json.loads(hsmd.run("create", "--next").stdout) == {"version": 2}
    assert hsmd.process is not None
    hsmd.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(30):
        while (await remote.wrap(bytes(32), CONTEXT)).key_version != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert remote.current_version == 2
    await remote.close()
    made = [entry.event for entry in entries_of(hsmd.folder / "record" / "operator")]
    assert [event.details.get("master_key_version") for event in made] == [None, 1, None, 2]
    assert {event.operation for event in made} == {"hsm.generate"}


def test_the_socket_is_guarded(make_hsmd: MakeHsmd) -> None:
    """A folder that others can write to is refused on both sides; a second process too."""
    hsmd = make_hsmd()
    second = make_hsmd(start=False)
    second.settings["socket"] = str(hsmd.socket)
    taken = second.run()
    assert taken.returncode == 1
    assert "another process listens" in taken.stderr
    second.settings["socket"] = str(second.socket)
    second.folder.chmod(0o777)
    open_folder = second.run()
    assert open_folder.returncode == 1
    assert "chmod go-w" in open_folder.stderr
    hsmd.folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        asyncio.run(open_backend(hsmd.uri))
    assert stat.S_IMODE((hsmd.folder / "record").stat().st_mode) == 0o700
    assert stat.S_IMODE((hsmd.folder / "state").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "uri", ["unix:", "unix:relative", "unix://host/x", "unix:/x?pin=1", "unix:/" + "x" * 200]
)
async def test_a_wrong_uri_is_refused(uri: str) -> None:
    """A `unix:` URI is an absolute path and nothing else."""
    with pytest.raises(ConfigurationError):
        await open_backend(uri)


async def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    """Without a process the backend is Unavailable, also where there is not even a folder."""
    for place in (tmp_path / "hsm.sock", tmp_path / "none" / "hsm.sock"):
        with pytest.raises(Unavailable):
            await open_backend(f"unix:{place}")


async def test_a_process_in_another_container_is_somebody(
    shared_hsmd: Hsmd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a peer in another PID namespace the kernel tells the uid and no pid: that is not the
    nobody of a socket without a peer, whose uid is -1.
    """

    def elsewhere(connected: socket.socket) -> Peer:
        return replace(peer_of(connected), pid=0)

    monkeypatch.setattr(connection, "peer_of", elsewhere)
    wrapper = await connect(shared_hsmd)
    await wrapper.check()
    await wrapper.close()
    with socket.socket(socket.AF_UNIX) as alone:
        assert peer_of(alone).is_nobody


async def test_signatures_are_on_record(
    make_hsmd: MakeHsmd, make_signing_key: MakeSigningKey
) -> None:
    """The signing key is another token's, behind the same socket; each signature is on record, and
    a process without one says so.
    """
    key = make_signing_key()
    hsmd = make_hsmd(signer=key.uri)
    signer = await open_signer(hsmd.uri, options=PATIENT)
    signature = await signer.sign(b"a note", reference="checkpoint-1")
    verify(signer.algorithm, signer.public_key, signature, b"a note")
    await signer.close()
    assert [device["role"] for device in hsmd.status()["devices"]] == ["wrapper", "signer"]
    assert hsmd.end() == 0
    signed = [entry.event for entry in hsmd.record() if entry.event.operation == "hsm.sign"]
    assert [(event.phase, event.correlation_id, event.success) for event in signed] == [
        ("intent", "checkpoint-1", None),
        ("outcome", "checkpoint-1", True),
    ]
    del hsmd.settings["signer"]
    hsmd.start()
    with pytest.raises(ConfigurationError, match="no signing key"):
        await open_signer(hsmd.uri, options=PATIENT)
