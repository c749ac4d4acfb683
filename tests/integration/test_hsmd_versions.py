"""Versions of the master key behind the HSM process: which one wraps is said with each request."""

import asyncio
import json
import socket
from dataclasses import replace

import pytest

from fixtures.hsmd import Hsmd, MakeHsmd
from fixtures.softhsm import MakeToken
from ironwork_hsm import BackendOptions, ConfigurationError, KeyMissing, Unavailable
from ironwork_hsm.remote import RemoteKeyWrapper, open_unix, wire
from ironwork_hsm.remote.framing import FrameBuffer
from ironwork_hsm.remote.wire import Frame, Kind

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
