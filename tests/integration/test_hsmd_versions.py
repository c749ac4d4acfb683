"""Versions of the master key behind the HSM process: which one wraps is said with each request."""

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.hsmd import Hsmd, MakeHsmd
from fixtures.migrated import NewStore
from fixtures.server import StartService
from fixtures.softhsm import MakeToken, opened
from fixtures.wrapped_rows import create_pepper, open_command_log, opened_key, sealed_row
from ironwork_hsm import BackendOptions, ConfigurationError, KeyMissing, Unavailable
from ironwork_hsm.remote import RemoteKeyWrapper, open_unix, wire
from ironwork_hsm.remote.framing import FrameBuffer
from ironwork_hsm.remote.wire import Frame, Kind
from ironwork_server.app.operator import Operator
from ironwork_server.app.startup import StartupError
from ironwork_server.core.errors import PreconditionFailed
from ironwork_server.core.errors import Unavailable as Failed
from ironwork_server.custody.retire import retire_version
from ironwork_server.custody.rewrap import Report, Rewrapper
from ironwork_server.custody.rotate import rotate_master_key
from ironwork_server.store import open_store

KEY = b"sk-ant-api03-" + b"k" * 60 + b"AAzz"
CONTEXT = b"workspace\x00key-7"
PATIENT = BackendOptions(deadline_s=30, slow_deadline_s=60)


async def connect(hsmd: Hsmd) -> RemoteKeyWrapper:
    return await open_unix(hsmd.uri, allow_missing=False, options=PATIENT)


async def test_clients_choose_each_for_itself(make_hsmd: MakeHsmd) -> None:
    """Two clients wrap with different versions at the same time; a version that is made meanwhile
    wraps for neither, and each choice is on record, before and after.
    """
    hsmd = make_hsmd(start=False)
    assert json.loads(hsmd.run("create", "--next").stdout) == {"version": 2}
    hsmd.start()
    one, other = await connect(hsmd), await connect(hsmd)
    assert json.loads((await asyncio.to_thread(hsmd.run, "create", "--next")).stdout) == {
        "version": 3
    }
    assert [found.version for found in await other.versions()] == [1, 2, 3]

    async def wrap(client: RemoteKeyWrapper, version: int) -> None:
        wrapped = await client.wrap(bytes(32), CONTEXT, version=version, reference=f"v{version}")
        assert wrapped.key_version == version
        assert wrapped.mechanism == await client.mechanism_of(version)
        assert await one.unwrap(wrapped, CONTEXT) == await other.unwrap(wrapped, CONTEXT)

    await asyncio.gather(*(wrap(one, 1) for _ in range(20)), *(wrap(other, 2) for _ in range(20)))
    await one.check(1)
    with pytest.raises(KeyMissing):
        await one.wrap(bytes(32), CONTEXT, version=4)
    await one.close()
    await other.close()
    assert hsmd.end() == 0
    events = [entry.event for entry in hsmd.record()]
    for version in (1, 2):
        wraps = [event for event in events if event.correlation_id == f"v{version}"]
        assert len(wraps) == 40
        assert {event.details["master_key_version"] for event in wraps} == {version}
        ended = [event for event in wraps if event.phase == "outcome"]
        assert {event.details["mechanism"] for event in ended} == {"aes-256-gcm"}
    probes = [event for event in events if event.operation == "hsm.probe" and event.principal]
    checked = probes[-1]
    assert (checked.details["master_key_version"], checked.success) == (1, True)


async def test_a_server_waits_for_the_switch(
    make_hsmd: MakeHsmd, start_service: StartService, tmp_path: Path
) -> None:
    """A version that was made at the HSM process wraps nothing for a server while one of its
    backends fails, not after the process was started anew either; once all were proven it does,
    from the next key on.
    """
    hsmd = make_hsmd()
    service = await start_service(master_key={"uris": [hsmd.uri]})
    assert (await service.add()).master_key_version.version == 1
    assert (await asyncio.to_thread(hsmd.run, "create", "--next")).returncode == 0
    remote = await connect(hsmd)
    assert [found.version for found in await remote.versions()] == [1, 2]
    store = open_store(service.settings.store.url)
    log = open_command_log(tmp_path / "commands")
    failing = make_hsmd()
    broken = await connect(failing)
    await asyncio.to_thread(failing.end)
    with pytest.raises(Failed, match="nothing was switched on"):
        await rotate_master_key([remote, broken], store, log.records)
    assert (await service.add()).master_key_version.version == 1
    await asyncio.to_thread(hsmd.end)
    await asyncio.to_thread(hsmd.start)
    assert (await service.add()).master_key_version.version == 1
    assert await rotate_master_key([remote], store, log.records) == 2
    assert (await service.add()).master_key_version.version == 2
    for wrapper in (remote, broken):
        await wrapper.close()
    await log.journal.close()
    await store.close()


async def test_what_is_behind_one_socket_moves_and_is_retired_by_name(
    make_hsmd: MakeHsmd, make_token: MakeToken, new_store: NewStore, tmp_path: Path
) -> None:
    """Keys that a later backend of the process wrapped move to its first one, and then that
    backend's version can be retired by its name, although the server lists one URI only.
    """
    old, new = make_token(with_key=True), make_token(with_key=True)
    store, log = open_store(new_store(tmp_path / "keys.db")), open_command_log(tmp_path / "log")
    async with opened(old.uri) as local:
        name = local.name
        row = await sealed_row(store, local, KEY)
        await create_pepper(store, local)
    remote = await connect(make_hsmd(token=new, backends=[new.uri, old.uri]))
    operator = Operator([remote], store, log.records)
    assert operator.wrapper(name) is operator.wrapper(remote.name) is remote
    with pytest.raises(StartupError, match="lists no such backend"):
        operator.wrapper("pkcs11:token=none;object=o")
    with pytest.raises(PreconditionFailed, match="still wraps 1 keys and the pepper"):
        await retire_version(name, 1, store, log.records, wrapping=None)
    report = await Rewrapper([remote], store, log.records, rate=1000).run()
    assert report == Report(moved=1, pepper_moved=True)
    assert await opened_key(store, remote, row.key_id) == KEY
    await retire_version(name, 1, store, log.records, wrapping=None)
    await remote.close()
    await log.journal.close()
    await store.close()


async def test_a_newer_kind_of_key_is_named_before_it_wraps(
    make_hsmd: MakeHsmd, make_token: MakeToken
) -> None:
    """A client knows by which mechanism each version wraps, also where they differ."""
    token = make_token(with_key=True)
    pinned = f"{token.uri}&ironwork-mechanism=hmac-sha256-derive"
    maker = make_hsmd(start=False, token=token, backends=[pinned])
    assert maker.run("create", "--next").returncode == 0
    maker.settings["backends"] = [token.uri]
    maker.start()
    remote = await connect(maker)
    assert remote.mechanism == "hmac-sha256-derive"
    assert await remote.mechanism_of(1) == "aes-256-gcm"
    wrapped = await remote.wrap(bytes(32), CONTEXT, version=1)
    assert (wrapped.key_version, wrapped.mechanism) == (1, "aes-256-gcm")
    assert remote.current_version == 2
    with pytest.raises(KeyMissing):
        await remote.mechanism_of(9)
    await remote.close()


def frames(client: socket.socket, count: int) -> list[Frame]:
    """So many answers."""
    buffer, found = FrameBuffer(), []
    while len(found) < count:
        received = client.recv(4096)
        assert received, "the connection ended"
        buffer.room()[: len(received)] = received
        found += [replace(frame, payload=memoryview(bytes(frame.payload)))
                  for frame in buffer.received(len(received))]  # fmt: skip
    return found


def test_a_client_of_another_release_is_told(shared_hsmd: Hsmd) -> None:
    """Whoever greets in another version of the protocol hears what is wrong at the greeting and at
    whatever else it asks, and nothing is done for it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        client.connect(str(shared_hsmd.socket))
        old_wrap = wire.frame(Kind.WRAP, 2, b"old-release", bytes(32), b"")
        client.sendall(wire.frame(Kind.HELLO, 1, b"ironwork-hsm/1") + old_wrap)
        for frame in frames(client, 2):
            assert frame.kind is Kind.FAILED
            error = wire.parse_failed(frame.payload)
            assert isinstance(error, ConfigurationError)
            assert "same release" in str(error)
    done = [entry.event.correlation_id for entry in shared_hsmd.record()]
    assert "old-release" not in done


async def test_a_process_of_another_release_is_told_of(
    make_hsmd: MakeHsmd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's opening says that the process at the socket is of another release: by that one's
    word, or by its hanging up at the greeting as releases did that had no such word.
    """
    hsmd = make_hsmd()
    with monkeypatch.context() as patch:
        patch.setattr(wire, "GREETING", b"ironwork-hsm/9")
        with pytest.raises(ConfigurationError, match="same release"):
            await connect(hsmd)
        patch.setattr(wire, "GREETING", b"another/1")
        with pytest.raises(Unavailable, match="older release"):
            await connect(hsmd)
    remote = await connect(hsmd)
    await remote.close()
