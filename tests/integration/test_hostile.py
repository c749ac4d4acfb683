"""A hostile peer at the whole service's edge: what it sends, leaves out, or breaks off."""

from __future__ import annotations  # the generated stubs' async classes exist for types only

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest

from fixtures.agent import Agent, reason_of, status_of
from fixtures.log_check import held
from fixtures.pki import write_server_files
from fixtures.processes import Running, server
from fixtures.production import Production
from fixtures.server import ADMIN, AGENT, AUDITOR, PARENT, StartService, TestService
from fixtures.softhsm import MakeToken
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_hsm.pkcs11 import rung
from ironwork_server.app import grpc_server
from ironwork_server.app.devpki import DevCa
from ironwork_server.app.settings import MIN_MESSAGE_KIB
from ironwork_server.cli.main import main
from ironwork_server.rpc.context import MAX_STREAM_MESSAGE_BYTES

CALL_S = 20.0
KEYS = "/ironwork.keys.v1.KeyService"
AUDIT = "/ironwork.keys.v1.AuditService"
HEALTH = "/grpc.health.v1.Health"
NO_MESSAGE = b"\xff" * 40


def outcomes(folder: Path, operation: str) -> list[str]:
    """The statuses of an operation's outcomes in the journal."""
    lines = held(folder / "audit")
    events = [json.loads(line) for line in lines]
    return [
        event["status"]
        for event in events
        if event.get("api", {}).get("operation") == operation
        and event["unmapped"]["phase"] == "outcome"
    ]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (ADMIN, f"{KEYS}/AddKey"),
        (ADMIN, f"{KEYS}/DeleteKey"),
        (AUDITOR, f"{AUDIT}/ListEntries"),
        (AGENT, f"{HEALTH}/Check"),
    ],
)
async def test_unreadable_request(service: TestService, path: str, method: str) -> None:
    """A request that is no message is refused in our words, not in protobuf's."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await service.channel(path).unary_unary(method)(NO_MESSAGE, timeout=CALL_S)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(status_of(error.value)) == "MESSAGE_MALFORMED"
    assert "DecodeError" not in error.value.details()


async def test_unreadable_watch(service: TestService) -> None:
    """So is the request of a stream of answers."""
    watch = service.channel("/nobody").unary_stream(f"{HEALTH}/Watch")(NO_MESSAGE, timeout=CALL_S)
    assert await watch.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_unreadable_message_on_a_stream(service: TestService) -> None:
    """Bytes that are no message end a WithKey stream in our words."""
    stream = service.channel(AGENT).stream_stream(f"{KEYS}/WithKey")(timeout=CALL_S)
    await stream.write(NO_MESSAGE)
    assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "DecodeError" not in await stream.details()


async def test_a_stream_message_that_is_far_too_long(service: TestService) -> None:
    """It ends the stream, unparsed: it is not kept twice."""
    stream = service.channel(AGENT).stream_stream(f"{KEYS}/WithKey")(timeout=CALL_S)
    start = keys_pb2.Start(parent=PARENT)
    await stream.write(keys_pb2.WithKeyRequest(start=start).SerializeToString())
    await stream.read()
    body = keys_pb2.RequestBody(data=bytes(MAX_STREAM_MESSAGE_BYTES))
    await stream.write(keys_pb2.WithKeyRequest(body=body).SerializeToString())
    assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"longer than {MAX_STREAM_MESSAGE_BYTES} bytes" in await stream.details()


async def test_an_operator_bounds_what_a_message_costs(start_service: StartService) -> None:
    """Where `limits.message_kib` is low, a longer message is not received, nor on a stream."""
    service = await start_service(limits={"message_kib": MIN_MESSAGE_KIB})
    stream = service.channel(AGENT).stream_stream(f"{KEYS}/WithKey")(timeout=CALL_S)
    body = keys_pb2.RequestBody(data=bytes(MIN_MESSAGE_KIB * 1024))
    await stream.write(keys_pb2.WithKeyRequest(body=body).SerializeToString())
    assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await service.keys().ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT), timeout=CALL_S)


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_compressed_message_is_refused(
    service: TestService, algorithm: grpc.Compression
) -> None:
    """Nobody makes the server unpack 10 MB out of 10 KB: messages come as they are, and what is not
    is refused before it is unpacked.
    """
    admin = keys_pb2_grpc.KeyServiceStub(service.channel(ADMIN))
    request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=bytes(10_000_000))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await admin.AddKey(request, timeout=CALL_S, compression=algorithm)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await admin.ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT), timeout=CALL_S)


async def test_silent_streams_are_limited(start_service: StartService) -> None:
    """A stream counts from its opening: one that never says anything takes a place as well."""
    service = await start_service(limits={"streams_per_principal": 3})
    stub = service.keys(AGENT)
    silent = [stub.WithKey(timeout=CALL_S) for _ in range(5)]
    codes = {asyncio.create_task(stream.code()) for stream in silent}
    refused: set[asyncio.Task[grpc.StatusCode]] = set()
    while len(refused) < 2:
        done, codes = await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
        refused |= done
    assert {task.result() for task in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(codes) == 3
    for stream in silent:
        stream.cancel()
    agent = Agent(service.keys("/workspace/acme/agent/other"))
    await agent.start()  # another principal's place is its own
    await agent.close()


async def test_connection_without_handshake(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection on which nobody agrees on TLS is closed at the handshake's deadline."""
    assert grpc_server.HANDSHAKE_S <= 10
    monkeypatch.setattr(grpc_server, "HANDSHAKE_S", 1)
    service = await start_service()
    with socket.create_connection(("127.0.0.1", service.service.port)) as silent:
        silent.setblocking(False)
        received = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(silent, 1), CALL_S)
    assert received == b""


async def test_no_hsm_operation_without_a_record(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start tries the master key as often as the log says, and no more."""
    trials: list[object] = []
    round_trip = rung.round_trip

    def counted(mechanism: Any, key: Any) -> rung.Trial:
        trials.append(key)
        return round_trip(mechanism, key)

    monkeypatch.setattr(rung, "round_trip", counted)
    service = await start_service()
    assert outcomes(service.folder, "hsm.probe") == ["Success"] * len(trials)


async def test_deletion_with_a_short_deadline(start_service: StartService) -> None:
    """A DeleteKey whose caller does not wait for it is done and recorded as done, so that no
    restored database revives the key.
    """
    service = await start_service(freshness_s=1.0)
    key = await service.add()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await service.keys().DeleteKey(keys_pb2.DeleteKeyRequest(name=key.name), timeout=0.3)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    listed = await service.keys().ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT))
    assert not listed.keys
    await service.stop()
    assert outcomes(service.folder, "DeleteKey") == ["Success"]


async def test_dev_certificates_brought_in_by_a_reload(
    production: Production, make_token: MakeToken, dev_ca: DevCa
) -> None:
    """`serve` takes a dev CA no more while it runs than at its start: it keeps what it had, and
    says so.
    """
    production.token = make_token(with_key=True)
    production.settings["master_key"] = {"uris": [production.token.uri]}
    config, log = str(production.write()), production.folder / "serve.log"
    assert main(["db", "upgrade", "--config", config]) == 0
    with server("serve", "--config", config, log=log, env=production.token.env) as running:
        await _told(running, "service.serving")
        write_server_files(production.folder / "tls", dev_ca)
        event = await _told(running, "reload.failed")
        assert "throw-away CA" in str(event["problem"])


async def _told(running: Running, name: str) -> dict[str, object]:
    """The log's event of this name, once it is there."""
    async with asyncio.timeout(CALL_S):
        while True:
            for line in running.log.read_text().splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["event"] == name:
                    return dict(json.loads(line))
            await asyncio.sleep(0.05)
