"""Health: what the monitor makes of its checks, and what watchers are told."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.server import AGENT, TestService
from ironwork_server.core.errors import Unavailable
from ironwork_server.rpc import health
from ironwork_server.rpc.health import SERVICES, WITNESS, HealthMonitor

Response = health_pb2.HealthCheckResponse
DEADLINE_S = 20.0


class Check:
    """A check that fails, breaks or hangs as it is told."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.hanging = False

    async def __call__(self) -> None:
        if self.hanging:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


async def status(monitor: HealthMonitor, service: str = "") -> int:
    answer = await monitor.servicer.Check(
        health_pb2.HealthCheckRequest(service=service),
        None,  # type: ignore[arg-type]  # used for unknown services only
    )
    return int(answer.status)


async def test_nothing_is_serving_before_the_first_check() -> None:
    """A server that has not looked yet does not say that it serves."""
    assert await status(HealthMonitor({"store": Check()})) == Response.NOT_SERVING


@pytest.mark.parametrize("service", sorted(SERVICES - {WITNESS}))
async def test_every_service_follows_the_checks(service: str) -> None:
    """A failing check is NOT_SERVING with its reason; its recovery is SERVING again."""
    check = Check()
    monitor = HealthMonitor({"store": check, "hsm": Check()})
    await monitor.refresh()
    assert (await status(monitor, service), monitor.failing) == (Response.SERVING, {})
    check.error = Unavailable("gone", reason="STORE_UNAVAILABLE")
    await monitor.refresh()
    assert await status(monitor, service) == Response.NOT_SERVING
    assert monitor.failing == {"store": "STORE_UNAVAILABLE"}
    check.error = None
    await monitor.refresh()
    assert (await status(monitor, service), monitor.failing) == (Response.SERVING, {})


async def test_the_witness_has_a_status_of_its_own() -> None:
    """Neither follows the other; without a witness it is NOT_SERVING for good."""
    check, witness = Check(), Check()
    monitor = HealthMonitor({"store": check}, witness=witness)
    await monitor.refresh()
    assert await status(monitor) == await status(monitor, WITNESS) == Response.SERVING
    witness.error = Unavailable("unseen", reason="UNWITNESSED")
    await monitor.refresh()
    assert (await status(monitor), await status(monitor, WITNESS)) == (
        Response.SERVING,
        Response.NOT_SERVING,
    )
    assert monitor.failing == {"witness": "UNWITNESSED"}
    witness.error, check.error = None, Unavailable("gone", reason="STORE_UNAVAILABLE")
    await monitor.refresh()
    assert (await status(monitor), await status(monitor, WITNESS)) == (
        Response.NOT_SERVING,
        Response.SERVING,
    )
    alone = HealthMonitor({"store": Check()})
    await alone.refresh()
    assert await status(alone, WITNESS) == Response.NOT_SERVING


async def test_a_check_that_hangs_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check has a deadline, after which it counts as failing."""
    monkeypatch.setattr(health, "CHECK_DEADLINE_S", 0.01)
    check = Check()
    check.hanging = True
    monitor = HealthMonitor({"hsm": check})
    await monitor.refresh()
    assert monitor.failing == {"hsm": "TIMEOUT"}


async def test_a_check_that_breaks_has_failed() -> None:
    """An error that nobody foresaw is a failure and does not end the monitor."""
    check = Check()
    check.error = RuntimeError("unforeseen")
    monitor = HealthMonitor({"hsm": check})
    await monitor.refresh()
    assert (await status(monitor), monitor.failing) == (Response.NOT_SERVING, {"hsm": "INTERNAL"})
    check.error = None
    await monitor.refresh()
    assert await status(monitor) == Response.SERVING


async def test_a_hanging_check_does_not_hide_anothers_failure() -> None:
    """Checks run side by side: what fails is published while another still waits."""
    hanging, failing = Check(), Check()
    monitor = HealthMonitor({"store": hanging, "journal": failing})
    await monitor.refresh()
    hanging.hanging = True
    failing.error = Unavailable("disk", reason="AUDIT_UNAVAILABLE")
    refreshing = asyncio.create_task(monitor.refresh())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not refreshing.done()
    assert await status(monitor) == Response.NOT_SERVING
    refreshing.cancel()


async def test_failure_and_recovery_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A failure that lasts is one line, and so is its end."""
    check = Check()
    monitor = HealthMonitor({"store": check})
    check.error = Unavailable("gone", reason="STORE_UNAVAILABLE")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await monitor.refresh()
        check.error = None
        for _ in range(3):
            await monitor.refresh()
    assert [record.msg for record in caplog.records] == ["health.failing", "health.recovered"]


async def test_a_draining_server_never_serves_again() -> None:
    """NOT_SERVING is final, whatever the checks say."""
    monitor = HealthMonitor({"store": Check()})
    await monitor.refresh()
    await monitor.drain()
    await monitor.refresh()
    assert await status(monitor) == Response.NOT_SERVING


async def test_the_monitor_looks_again_and_again() -> None:
    """A failure is noticed without anybody asking."""
    check = Check()
    monitor = HealthMonitor({"store": check}, interval_s=0.001)
    watching = asyncio.create_task(monitor.run())
    async with asyncio.timeout(DEADLINE_S):
        while await status(monitor) != Response.SERVING:  # noqa: ASYNC110  the state has no event
            await asyncio.sleep(0)
        check.error = Unavailable("gone", reason="X")
        while await status(monitor) != Response.NOT_SERVING:  # noqa: ASYNC110  as above
            await asyncio.sleep(0)
    watching.cancel()


async def test_a_watcher_is_told_of_changes_and_ends_with_the_drain(
    service: TestService,
) -> None:
    """Watch gives the status now and at each change; a drain ends it, so that it holds up none."""
    stub = health_pb2_grpc.HealthStub(service.channel(AGENT))
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="x.Y"), timeout=DEADLINE_S)
    assert (await watch.read()).status == Response.SERVING
    assert (await unknown.read()).status == Response.SERVICE_UNKNOWN
    await service.service.health.drain()
    assert (await watch.read()).status == Response.NOT_SERVING
    assert await watch.read() is grpc.aio.EOF
    assert await unknown.read() is grpc.aio.EOF


async def test_watches_are_counted(service: TestService, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection holds so many watches, the process so many; an ended one makes room."""
    monkeypatch.setattr(health, "WATCHES_PER_CONNECTION", 2)
    monkeypatch.setattr(health, "WATCHES", 3)
    request = health_pb2.HealthCheckRequest()

    async def watching(stub: health_pb2_grpc.HealthStub) -> grpc.aio.UnaryStreamCall:
        watch = stub.Watch(request, timeout=DEADLINE_S)
        await watch.read()
        return watch

    first, second = (health_pb2_grpc.HealthStub(service.channel(AGENT)) for _ in range(2))
    held = [await watching(first), await watching(first)]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await watching(first)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    held.append(await watching(second))
    with pytest.raises(grpc.aio.AioRpcError):
        await watching(second)
    assert (await first.Check(request, timeout=DEADLINE_S)).status == Response.SERVING
    held[0].cancel()
    async with asyncio.timeout(DEADLINE_S):
        while service.service.health.servicer._watches.total() == 3:  # noqa: ASYNC110  no event
            await asyncio.sleep(0)
    await watching(first)


async def test_an_unknown_service_is_not_found(service: TestService) -> None:
    """Check of a service that there is not answers NOT_FOUND, as grpc.health.v1 says."""
    stub = health_pb2_grpc.HealthStub(service.channel(AGENT))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(health_pb2.HealthCheckRequest(service="x.Y"), timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is not taken ends the watch instead of holding it for ever."""
    monkeypatch.setattr(health, "WRITE_DEADLINE_S", 0.01)

    class Stalled:
        aborted: grpc.StatusCode | None = None

        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        async def write(self, _: object) -> None:
            await asyncio.Event().wait()

        async def abort(self, code: grpc.StatusCode, *_: object) -> None:
            self.aborted = code
            raise grpc.aio.AbortError

    context = Stalled()
    monitor = HealthMonitor({})
    with pytest.raises(grpc.aio.AbortError):
        await monitor.servicer.Watch(health_pb2.HealthCheckRequest(), context)  # type: ignore[arg-type]
    assert context.aborted is grpc.StatusCode.CANCELLED
