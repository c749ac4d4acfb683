"""What a call may cost the server: memory for large bodies and for readers that never read, and how
soon an upstream connection is closed that nobody needs any more.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import psutil
import pytest

from fixtures.agent import HEADERS, Agent, message_body
from fixtures.processes import Dev, dev
from fixtures.server import AGENT, TestService, spiffe
from fixtures.silence import SilentProxy
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client import KeyClient, Profile
from ironwork_server.app.devpki import write_client_profile
from ironwork_server.app.grpc_server import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S
from ironwork_simulator import Behaviour
from ironwork_simulator.filling import filling, filling_sha256

MB = 1_000_000
BULK = 300 * MB
MAY_RISE = 50 * MB
READERS = 60
READER_MAY_COST = 512 * 1024
# DESIGN 3: the disconnect of an agent closes the upstream connection within a second.
CLOSED_WITHIN_S = 1.0
# gRPC's timers, and this machine's.
SLACK_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A server of its own process, with a key, for this module."""
    with dev(tmp_path_factory.mktemp("bounded") / "state", "--log-level", "info") as running:
        with KeyClient(Profile.load(running.profile("admin"))) as admin:
            admin.add(running.keys["first"])
        yield running


def report(what: str) -> None:
    """A figure, for the reader of a run with -s."""
    print(what)  # noqa: T201 - the figures are what these tests are read for


def channel_of(server: Dev) -> grpc.aio.Channel:
    """A connection of its own to the server's process, as its agent."""
    profile = Profile.load(server.profile("agent"))
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(server.target, profile.credentials(), options)


def memory(server: Dev) -> int:
    """The server's resident memory, in bytes; the simulator is another process."""
    return psutil.Process(server.running.process.pid).memory_info().rss


class Peak:
    """The highest memory while something goes on, looked at between its messages."""

    def __init__(self, server: Dev) -> None:
        self._server = server
        self.before = self.highest = memory(server)
        self._count = 0

    def look(self) -> None:
        self._count += 1
        if self._count % 50 == 0:
            self.highest = max(self.highest, memory(self._server))

    @property
    def rise(self) -> int:
        return self.highest - self.before


def behave(**fields: object) -> tuple[str, bytes]:
    """The header by which the simulator is told what to do in another process."""
    return ("anthropic-simulator", json.dumps(fields).encode())


@asynccontextmanager
async def warm(server: Dev) -> AsyncIterator[Agent]:
    """An open stream on which everything has been loaded that a first call loads."""
    async with channel_of(server) as channel:
        agent = Agent(keys_pb2_grpc.KeyServiceStub(channel), deadline_s=900)
        await agent.start()
        await agent.message()
        yield agent
        await agent.close()


async def logged(server: Dev, request_id: str) -> dict[str, object]:
    """The simulator's record of a request. It is written after the answer's last byte, so the
    answer may be here first: wait for its line.
    """
    log = str(server.state / "simulator" / "requests.log")
    follow = await asyncio.create_subprocess_exec(
        "tail", "-n", "+1", "-f", log, stdout=asyncio.subprocess.PIPE
    )
    assert follow.stdout is not None
    try:
        async with asyncio.timeout(60):
            while (line := await follow.stdout.readline()).endswith(b"\n"):
                record = dict(json.loads(line))
                if record["request_id"] == request_id:
                    return record
    finally:
        follow.kill()
        await follow.communicate()
    raise AssertionError(f"{request_id} is not in the simulator's log")


@pytest.mark.slow
async def test_300_mb_up_do_not_fill_the_server(server: Dev) -> None:
    """A file of 300 MB is passed on while it comes: the server's memory rises by under 50 MB."""
    async with warm(server) as agent:
        peak = Peak(server)
        agent.number += 1
        headers = [*HEADERS, behave(body="{}")]
        head = keys_pb2.RequestHead(
            call=agent.number,
            method="POST",
            path="/v1/files",
            headers=[keys_pb2.Header(name=n, value=v) for n, v in headers],
            content_length=BULK,
        )
        await agent.send(head=head)
        for block in filling(BULK):
            for start in range(0, len(block), 16384):
                data = block[start : start + 16384]
                await agent.send(body=keys_pb2.RequestBody(data=data))
                peak.look()
        await agent.send(end=keys_pb2.RequestEnd())
        answer = await agent.answer()
    assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
    record = await logged(server, answer.end.anthropic_request_id)
    assert (record["body_length"], record["body_sha256"]) == (BULK, filling_sha256(BULK))
    report(f"300 MB up: +{peak.rise / MB:.1f} MB")
    assert peak.rise < MAY_RISE


@pytest.mark.slow
async def test_300_mb_down_do_not_fill_the_server(server: Dev) -> None:
    """An answer of 300 MB is passed on while it comes: the memory rises by under 50 MB."""
    digest, length = hashlib.sha256(), 0
    async with warm(server) as agent:
        peak = Peak(server)
        await agent.begin(
            "GET", "/v1/files/file_1/content", headers=[*HEADERS[1:], behave(fill=BULK)]
        )
        while True:
            message = await agent.read()
            if message.WhichOneof("message") == "body":
                digest.update(message.body.data)
                length += len(message.body.data)
                peak.look()
            elif message.WhichOneof("message") == "end":
                break
    assert message.end.outcome == keys_pb2.OUTCOME_COMPLETED
    assert (length, digest.hexdigest()) == (BULK, filling_sha256(BULK))
    report(f"300 MB down: +{peak.rise / MB:.1f} MB")
    assert peak.rise < MAY_RISE


async def test_a_reader_that_never_reads_is_cheap(server: Dev) -> None:
    """An agent that takes nothing of a large answer costs under 512 KiB, with its stream, its TLS
    connection, and the one upstream."""
    async with warm(server):
        gc.collect()
        before = memory(server)
        channels, agents = [], []
        for _ in range(READERS):
            channel = channel_of(server)
            channels.append(channel)
            agent = Agent(keys_pb2_grpc.KeyServiceStub(channel), deadline_s=300)
            agents.append(agent)
            await agent.start()
            await agent.begin(
                "GET", "/v1/files/file_1/content", headers=[*HEADERS[1:], behave(fill=50 * MB)]
            )
        each = await _settled(server, before)
        # Both sides of each reader are open still: what was measured was there.
        assert _connections(server) >= 2 * READERS
        for agent in agents:
            agent.stream.cancel()
        for channel in channels:
            await channel.close()
    report(f"a reader that never reads: {each / 1024:.0f} KiB")
    assert each < READER_MAY_COST


def _connections(server: Dev) -> int:
    connections = psutil.Process(server.running.process.pid).net_connections()
    return sum(c.status == psutil.CONN_ESTABLISHED for c in connections)


async def _settled(server: Dev, before: int) -> float:
    """What each reader costs once the buffers are full: the memory rises no more."""
    last = 0
    while (now := memory(server)) > last + 64 * 1024:
        last = max(last, now)
        await asyncio.sleep(1.5)
    return (max(last, now) - before) / READERS


async def _held(service: TestService, agent: Agent) -> int:
    """A streamed message that stays open after its first event; its request's number."""
    hold = service.simulator.hold()
    service.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    number = len(service.simulator.requests) + 1
    await agent.begin(body=message_body(stream=True))
    while (await agent.read()).WhichOneof("message") != "body":
        pass
    return number


@pytest.mark.parametrize("how", ["cancel", "disconnect", "close"])
async def test_an_agent_that_leaves_closes_the_upstream_within_a_second(
    service: TestService, how: str
) -> None:
    """Cancel, a cancelled RPC, a closed connection: the upstream socket is closed within 1 s."""
    await service.add()
    channel = service.channel(AGENT)
    took = []
    for _ in range(5):
        agent = Agent(keys_pb2_grpc.KeyServiceStub(channel))
        await agent.start()
        number = await _held(service, agent)
        left = time.monotonic()
        if how == "cancel":
            await agent.send(cancel=keys_pb2.Cancel(call=agent.number))
        elif how == "disconnect":
            agent.stream.cancel()
        else:
            await channel.close()
            channel = service.channel(AGENT)
        record = await service.simulator.disconnected(number)
        assert record.disconnected_at is not None
        took.append(record.disconnected_at - left)
    report(f"{how}: closed after {max(took) * 1000:.0f} ms at most")
    assert max(took) < CLOSED_WITHIN_S


@pytest.mark.slow
async def test_a_silent_partition_is_noticed_within_keepalive(service: TestService) -> None:
    """Where an agent's network swallows everything without a word, the upstream connection is
    closed within the keepalive's time and its timeout."""
    await service.add()
    async with SilentProxy(service.service.port) as proxy:
        issued = service.ca.client_certificate(spiffe(AGENT))
        channel = grpc.aio.secure_channel(
            f"localhost:{proxy.port}",
            grpc.ssl_channel_credentials(
                service.ca.certificate_pem, issued.private_key_pem, issued.certificate_pem
            ),
            [("grpc.use_local_subchannel_pool", 1)],
        )
        agent = Agent(keys_pb2_grpc.KeyServiceStub(channel), deadline_s=300)
        await agent.start()
        number = await _held(service, agent)
        proxy.fall_silent()
        left = time.monotonic()
        bound = KEEPALIVE_S + KEEPALIVE_TIMEOUT_S
        record = await service.simulator.disconnected(number, timeout_s=bound + SLACK_S)
        assert record.disconnected_at is not None
        report(f"silence: closed after {record.disconnected_at - left:.1f} s")
        agent.stream.cancel()
        await channel.close()


@pytest.mark.slow
async def test_a_stopped_agent_process_is_noticed_within_keepalive(
    service: TestService, tmp_path: Path
) -> None:
    """An agent's process that is stopped (SIGSTOP) answers no ping: likewise."""
    await service.add()
    profile = write_client_profile(
        tmp_path / "profiles",
        "agent",
        service.ca.client_certificate(spiffe(AGENT)),
        service.ca,
        target=service.target,
        workspace="acme",
    )
    hold = service.simulator.hold()
    service.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    number = len(service.simulator.requests) + 1
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STOPPED, str(profile), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"reading\n"
        process.send_signal(signal.SIGSTOP)
        left = time.monotonic()
        bound = KEEPALIVE_S + KEEPALIVE_TIMEOUT_S
        record = await service.simulator.disconnected(number, timeout_s=bound + SLACK_S)
        assert record.disconnected_at is not None
        report(f"SIGSTOP: closed after {record.disconnected_at - left:.1f} s")
    finally:
        process.kill()
        await process.wait()


STOPPED = """
import sys, httpx2
from ironwork_client import Profile, WithKeyTransport
body = {"model": "claude-haiku-5-5", "max_tokens": 64, "stream": True,
        "messages": [{"role": "user", "content": "hi"}]}
with httpx2.Client(transport=WithKeyTransport(Profile.load(sys.argv[1])), timeout=300) as http:
    with http.stream("POST", "https://api.anthropic.com/v1/messages", json=body,
                     headers={"anthropic-version": "2023-06-01"}) as response:
        for _ in response.iter_raw():
            print("reading", flush=True)
"""
