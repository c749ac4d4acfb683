"""What requests cost before it is known who sends them, and while many are read."""

from __future__ import annotations  # the generated stubs' async classes exist for types only

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest

from fixtures.agent import reason_of, status_of
from fixtures.processes import Dev, dev
from fixtures.server import ADMIN, AGENT, PARENT, StartService, TestService, spiffe
from ironwork.keys.v1 import audit_pb2, keys_pb2, keys_pb2_grpc
from ironwork_audit import parse
from ironwork_client import KeyClient, Profile
from ironwork_server.access import turns
from ironwork_server.access.policy import default_policy
from ironwork_server.app.devpki import DevCa

CALL_S = 30.0
ADD = "/ironwork.keys.v1.KeyService/AddKey"
DELETE = "/ironwork.keys.v1.KeyService/DeleteKey"
WITH_KEY = "/ironwork.keys.v1.KeyService/WithKey"
LIST = "/ironwork.keys.v1.KeyService/ListMasked"
HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
MB = 1_000_000
TEXT = b"sk-ant-api03 " * (10 * MB // 13)


async def refusal(call: Awaitable[object]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return reason_of(status_of(error.value))


AGENTS_MAY_LIST = """permit (
  principal in Ironwork::Role::"agent", action == Ironwork::Action::"ListMasked", resource
);"""


def silent(channel: grpc.aio.Channel, method: str) -> grpc.aio.StreamUnaryCall:
    """A unary call, as the wire has it, whose request never comes."""
    return channel.stream_unary(method)(timeout=CALL_S)


async def test_nobody_is_refused_before_the_request_is_read(service: TestService) -> None:
    """Who the caller is decides before a byte of its request is asked for."""
    nobody = service.channel("/nobody")
    assert await refusal(silent(nobody, ADD)) == "IDENTITY_UNMAPPED"


async def test_a_request_that_does_not_come_is_given_up(
    service: TestService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn ends at a deadline, and so does a health request's, which is shorter."""
    assert turns.READING_S <= 15
    for reading in (service.service.reading.turns, service.service.reading.open_turns):
        monkeypatch.setattr(reading, "_deadline_s", 0.05)
    admin = service.channel(ADMIN)
    for method in (ADD, HEALTH, WATCH):
        assert await refusal(silent(admin, method)) == "REQUEST_TIMEOUT"


async def test_who_sends_nothing_keeps_nobody_else_waiting(service: TestService) -> None:
    """One caller's silent calls take its own turns; another's requests and health pass."""
    admin, other = service.channel(ADMIN), service.keys("/workspace/acme/key-admin/bob")
    hanging = [silent(admin, ADD) for _ in range(20)]
    request = keys_pb2.ListMaskedRequest(parent=PARENT)
    await other.ListMasked(request, timeout=CALL_S)
    for call in hanging:
        call.cancel()
    await keys_pb2_grpc.KeyServiceStub(admin).ListMasked(request, timeout=CALL_S)


async def test_who_may_never_call_is_refused_unread(service: TestService) -> None:
    """An agent's DeleteKey is refused, and on record, although its request never comes."""
    agent = service.channel(AGENT)
    assert await refusal(silent(agent, DELETE)) == "PERMISSION_DENIED"
    request = audit_pb2.ListEntriesRequest(operation="DeleteKey")
    (entry,) = (await service.audit().ListEntries(request, timeout=CALL_S)).entries
    event = parse(entry.event).event
    assert (event.principal, event.reason) == (spiffe(AGENT), "PERMISSION_DENIED")


async def test_who_may_never_open_a_stream_is_refused_unread(service: TestService) -> None:
    """A key-admin's WithKey is refused, and on record, although its start never comes."""
    stream = service.channel(ADMIN).stream_stream(WITH_KEY)(timeout=CALL_S)
    assert await refusal(stream.read()) == "PERMISSION_DENIED"
    request = audit_pb2.ListEntriesRequest(operation="WithKey", principal=spiffe(ADMIN))
    entries = (await service.audit().ListEntries(request, timeout=CALL_S)).entries
    assert parse(entries[-1].event).event.reason == "PERMISSION_DENIED"


async def test_slow_agents_do_not_delay_a_deletion(
    start_service: StartService, tmp_path: Path
) -> None:
    """Also where a policy lets agents list keys: agents without end, and a key-admin is read."""
    (tmp_path / "policy").mkdir()
    policy = tmp_path / "policy" / "roles.cedar"
    policy.write_text(default_policy() + AGENTS_MAY_LIST)
    service = await start_service()
    hanging = [
        silent(service.channel(f"/workspace/acme/agent/slow-{number}"), LIST)
        for number in range(turns.READING)
        for _ in range(turns.READING_PER_NAME)
    ]
    shares = service.service.reading.turns._shares
    async with asyncio.timeout(CALL_S):
        while ("agent",) not in shares or not shares["agent",].turns.locked():  # noqa: ASYNC110  no event
            await asyncio.sleep(0.01)  # the calls are on their way
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await service.keys().DeleteKey(
            keys_pb2.DeleteKeyRequest(name=f"{PARENT}/keys/none"), timeout=turns.READING_S / 2
        )
    assert error.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    for call in hanging:
        call.cancel()


async def test_ten_megabytes_get_the_fields_name(service: TestService) -> None:
    """A text of any length up to the limit is told from a key by us, field and reason."""
    call = service.keys().AddKey(
        keys_pb2.AddKeyRequest(parent=PARENT, api_key=TEXT), timeout=CALL_S
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.value.details() or "").startswith("api_key: ")
    long_name = keys_pb2.AddKeyRequest(parent=PARENT, api_key=b"x", display_name="é" * MB)
    assert await refusal(service.keys().AddKey(long_name, timeout=CALL_S)) == "INVALID_FIELD"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A server of its own process, which has served each kind of call once."""
    with dev(tmp_path_factory.mktemp("reading") / "state", "--log-level", "info") as running:
        with KeyClient(Profile.load(running.profile("admin"))) as admin:
            admin.add(running.keys["first"])
        yield running


async def rise(server: Dev, path: str, method: str, calls: int, connections: int = 4) -> int:
    """By how many bytes the server's memory rises while so many 10 MB requests are sent."""
    process = psutil.Process(server.running.process.pid)
    ca = DevCa.load(server.state / "pki")
    issued = ca.client_certificate(spiffe(path))
    credentials = grpc.ssl_channel_credentials(
        ca.certificate_pem, issued.private_key_pem, issued.certificate_pem
    )
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=TEXT).SerializeToString()
    before = highest = process.memory_info().rss
    async with AsyncExitStack() as stack:

        async def attack(channel: grpc.aio.Channel) -> None:
            with suppress(grpc.aio.AioRpcError):
                await channel.unary_unary(method)(request, timeout=CALL_S)

        channels = [
            await stack.enter_async_context(
                grpc.aio.secure_channel(server.target, credentials, options)
            )
            for _ in range(connections)
        ]
        attacks = asyncio.gather(*(attack(one) for one in channels for _ in range(calls)))
        while not attacks.done():
            highest = max(highest, process.memory_info().rss)
            await asyncio.wait([attacks], timeout=0.02)
    return highest - before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "method", "bound"),
    [
        # Nothing is read: what remains is a window for each stream, 64 streams on 4 connections.
        ("/nobody", ADD, 120 * MB),
        ("/nobody", HEALTH, 500 * MB),
        # Read by turns, two at once for each caller.
        (ADMIN, ADD, 250 * MB),
        (AGENT, ADD, 250 * MB),
    ],
)
async def test_many_long_requests_cost_a_bounded_memory(
    server: Dev, path: str, method: str, bound: int
) -> None:
    """256 requests of 10 MB at once, 2.6 GB in all, raise the server's memory by a small part."""
    risen = await rise(server, path, method, calls=64)
    print(f"{path} {method}: +{risen / MB:.0f} MB")  # noqa: T201  the figure is what it is read for
    assert risen < bound
