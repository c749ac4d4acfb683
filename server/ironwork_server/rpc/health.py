"""grpc.health.v1 with real checks: the store answers, the log can be written, the HSM serves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from grpc_health.v1 import health, health_pb2

from ironwork_server.core.errors import IronworkError
from ironwork_server.rpc import table

log = logging.getLogger(__name__)

# "" is the server as a whole.
SERVICES = ("", table.KEYS, table.AUDIT)
INTERVAL_S = 0.5
CHECK_DEADLINE_S = 3.0

Check = Callable[[], Awaitable[None]]


class HealthMonitor:
    """Runs the checks and tells the health service. A check raises IronworkError when it fails."""

    def __init__(self, checks: dict[str, Check], *, interval_s: float = INTERVAL_S) -> None:
        self.servicer = health.aio.HealthServicer()
        self._checks = checks
        self._interval_s = interval_s
        self._serving: bool | None = None
        self.failing: dict[str, str] = {}

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._interval_s)

    async def refresh(self) -> None:
        """Run every check once and publish what they say."""
        failing = {}
        for name, check in self._checks.items():
            reason = await self._reason(check)
            if reason:
                failing[name] = reason
        for name in failing.keys() - self.failing.keys():
            log.error("health.failing", extra={"component": name, "reason": failing[name]})
        for name in self.failing.keys() - failing.keys():
            log.info("health.recovered", extra={"component": name})
        self.failing = failing
        await self._publish(serving=not failing)

    async def _reason(self, check: Check) -> str:
        try:
            async with asyncio.timeout(CHECK_DEADLINE_S):
                await check()
        except TimeoutError:
            return "TIMEOUT"
        except IronworkError as error:
            return error.reason
        return ""

    async def _publish(self, *, serving: bool) -> None:
        if serving is self._serving:
            return
        self._serving = serving
        status = health_pb2.HealthCheckResponse
        for service in SERVICES:
            await self.servicer.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def drain(self) -> None:
        """NOT_SERVING from now on, whatever the checks say."""
        await self.servicer.enter_graceful_shutdown()
