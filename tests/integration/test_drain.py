"""How long a server takes to stop: no longer than what is in flight."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.agent import Agent
from fixtures.server import AGENT, StartService
from ironwork.keys.v1 import keys_pb2
from ironwork_server.app.startup import StartupError
from ironwork_server.upstream.endpoint import UpstreamEndpoint

# Far above what stopping takes, far below the grace.
SOON_S = 20
GRACE_S = 300


async def test_an_idle_server_does_not_use_up_its_grace(start_service: StartService) -> None:
    """Neither an open stream on which nothing happens, nor one whose calls have ended, nor a
    watcher of health holds up the stop.
    """
    service = await start_service(drain_s=GRACE_S)
    await service.add()
    silent, used = Agent(service.keys(AGENT)), Agent(service.keys(AGENT))
    await silent.start()
    await used.start()
    await used.message()
    watch = health_pb2_grpc.HealthStub(service.channel(AGENT)).Watch(
        health_pb2.HealthCheckRequest()
    )
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    async with asyncio.timeout(SOON_S):
        await service.service.stop()
    for agent in (silent, used):
        assert (await agent.read()).go_away.reason == keys_pb2.GoAway.REASON_DRAIN
        assert await agent.stream.read() is grpc.aio.EOF
        assert await agent.stream.code() is grpc.StatusCode.OK


async def test_trust_roots_that_cannot_be_loaded_are_told_at_the_start(
    start_service: StartService, tmp_path: Path
) -> None:
    """Without trust roots for Anthropic nothing is served, and the line names the file."""
    missing = tmp_path / "none.pem"
    endpoint = UpstreamEndpoint("api.anthropic.com", 443, ca_file=missing)
    with pytest.raises(StartupError, match=r"none\.pem"):
        await start_service(endpoint=endpoint)
