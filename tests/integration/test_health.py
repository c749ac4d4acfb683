"""What health says of a whole service whose parts fail and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.agent import Agent
from fixtures.faults import ServiceFaults, install_faults
from fixtures.journal_disk import BROKEN, FULL
from fixtures.server import AGENT, AUDITOR, StartService, TestService
from ironwork.keys.v1 import keys_pb2
from ironwork_hsm import Unavailable
from ironwork_server.rpc import table
from ironwork_server.rpc.health import INTERVAL_S

DEADLINE_S = 30.0
SERVICES = ("", table.KEYS, table.AUDIT)
Response = health_pb2.HealthCheckResponse


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ServiceFaults:
    return install_faults(monkeypatch)


@pytest.fixture
async def faulty(faults: ServiceFaults, start_service: StartService) -> TestService:
    """A service with faults to switch on."""
    return await start_service()


class Watchers:
    """One Watch for each of the names that health is asked by."""

    def __init__(self, service: TestService) -> None:
        stub = health_pb2_grpc.HealthStub(service.channel(AUDITOR))
        self._streams: list[Any] = [
            stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=100)
            for name in SERVICES
        ]

    async def become(self, status: int) -> None:
        """Every one is told this next."""
        async with asyncio.timeout(DEADLINE_S):
            for stream in self._streams:
                assert (await stream.read()).status == status

    def close(self) -> None:
        for stream in self._streams:
            stream.cancel()


@pytest.fixture
async def watchers(faulty: TestService) -> AsyncIterator[Watchers]:
    """Watching a service that serves."""
    watching = Watchers(faulty)
    await watching.become(Response.SERVING)
    yield watching
    watching.close()


async def opened(service: TestService) -> Agent:
    """A workspace with a key, and an open stream."""
    await service.add()
    agent = Agent(service.keys(AGENT), deadline_s=100)
    await agent.start()
    return agent


def test_health_is_looked_at_within_a_second() -> None:
    """What fails is told within a second."""
    assert INTERVAL_S <= 0.5


async def test_a_full_audit_disk_is_told_and_so_is_its_end(
    faulty: TestService, faults: ServiceFaults, watchers: Watchers
) -> None:
    """While the log cannot be written health says NOT_SERVING and nothing is done; when there is
    room again, both end by themselves.
    """
    agent = await opened(faulty)
    faults.disk.faults["write"] = FULL
    assert (await agent.message()).reason == "AUDIT_UNAVAILABLE"
    await watchers.become(Response.NOT_SERVING)
    assert (await agent.message()).reason == "AUDIT_UNAVAILABLE"
    assert list(faults.disk.faults) == ["write"]
    faults.disk.faults.clear()
    await watchers.become(Response.SERVING)
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_a_failed_sync_lasts(
    faulty: TestService, faults: ServiceFaults, watchers: Watchers
) -> None:
    """After a failed fdatasync the kernel may have dropped what was written: health stays
    NOT_SERVING and nothing is done, also when the disk seems well again, until a restart.
    """
    agent = await opened(faulty)
    faults.disk.faults["fdatasync"] = BROKEN
    assert (await agent.message()).reason == "AUDIT_UNAVAILABLE"
    await watchers.become(Response.NOT_SERVING)
    faults.disk.faults.clear()
    writes = faults.disk.calls["write"]
    for _ in range(3):
        assert (await agent.message()).reason == "AUDIT_UNAVAILABLE"
    assert faults.disk.calls["write"] == writes, "the file is not touched again"
    health = health_pb2_grpc.HealthStub(faulty.channel(AUDITOR))
    for name in SERVICES:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_S)
        assert answer.status == Response.NOT_SERVING
    await agent.close()


async def test_a_failing_hsm_is_told_and_so_is_its_return(
    faulty: TestService, faults: ServiceFaults, watchers: Watchers
) -> None:
    """When an operation of the HSM fails health says NOT_SERVING, without waiting for another; when
    the device is back it says SERVING, without a call that needs it.
    """
    agent = await opened(faulty)
    gone = Unavailable("The device does not answer.")
    faults.hsm.raises.update(unwrap=gone, wrap=gone, check=gone)
    answer = await agent.message()
    assert (answer.reason, answer.end.sent_upstream) == ("MASTER_KEY_UNAVAILABLE", False)
    await watchers.become(Response.NOT_SERVING)
    faults.hsm.raises.clear()
    await watchers.become(Response.SERVING)
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_a_store_that_is_gone_is_told_and_so_is_its_return(
    faulty: TestService, watchers: Watchers
) -> None:
    """A database file that is moved away is NOT_SERVING, and SERVING once it is back;
    no call was needed to find out.
    """
    path = faulty.settings.store.path
    away = path.with_name("away.db")
    path.rename(away)
    await watchers.become(Response.NOT_SERVING)
    away.rename(path)
    await watchers.become(Response.SERVING)


async def test_a_check_that_fails_in_an_unforeseen_way_is_a_failure(
    faulty: TestService, faults: ServiceFaults, watchers: Watchers
) -> None:
    """Health never freezes on SERVING: an error that nobody foresaw counts as a failing part."""
    faults.store.raises["check"] = RuntimeError("unforeseen")
    await watchers.become(Response.NOT_SERVING)
    faults.store.raises.clear()
    await watchers.become(Response.SERVING)


async def test_a_draining_service_is_not_serving(faulty: TestService, watchers: Watchers) -> None:
    """From the beginning of the drain nobody is sent here, and watchers do not hold it up."""
    stopping = asyncio.create_task(faulty.service.stop())
    await watchers.become(Response.NOT_SERVING)
    async with asyncio.timeout(DEADLINE_S):
        await stopping


async def test_an_unknown_service_is_not_found(faulty: TestService) -> None:
    """Health knows its services by name, and no others."""
    health = health_pb2_grpc.HealthStub(faulty.channel(AUDITOR))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await health.Check(health_pb2.HealthCheckRequest(service="x"), timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
