"""grpc.health.v1 with real checks: the store answers, the log can be written, the HSM serves."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ironwork_server.core.described import described
from ironwork_server.core.errors import Cancelled, IronworkError, LimitExceeded
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.rpc import table
from ironwork_server.rpc.context import Context
from ironwork_server.rpc.errors import sealed
from ironwork_server.rpc.grant import Hold

log = logging.getLogger(__name__)

# Whether the audit log is witnessed: a status of its own, since no call depends on it.
WITNESS = "ironwork.audit.Witness"
# "" is the server as a whole.
SERVICES = frozenset({"", table.KEYS, table.AUDIT, WITNESS})
INTERVAL_S = 0.5
CHECK_DEADLINE_S = 3.0
# A watcher that does not take what is written is let go.
WRITE_DEADLINE_S = 30.0
# Any peer of a client CA may watch, so watchers are counted: on one connection, and in all.
WATCHES_PER_CONNECTION = 4
WATCHES = 256

Check = Callable[[], Awaitable[None]]
# Returns when a peer may not watch any more, and why.
Lost = Callable[[Context], Awaitable[str]]
Response = health_pb2.HealthCheckResponse


async def _never(_: Context) -> str:
    await asyncio.Event().wait()
    return ""


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it ships no types
    """One status for all services but WITNESS, which has its own. grpc_health's own servicer never
    ends a Watch, so that one watcher would make every drain take its whole grace.
    """

    def __init__(self, lost: Lost = _never) -> None:
        self._lost = lost
        self._serving = False
        self._witnessed = False
        self._draining = False
        self._changed = asyncio.Event()
        # By connection; one that watches nothing any more is forgotten.
        self._watches: Counter[str] = Counter()

    def publish(self, *, serving: bool, witnessed: bool | None = None) -> None:
        """Tell every watcher; NOT_SERVING for good once drain() was called. witnessed: of WITNESS;
        None: as it was.
        """
        draining = self._draining
        now = (
            serving and not draining,
            (self._witnessed if witnessed is None else witnessed) and not draining,
        )
        if now == (self._serving, self._witnessed) and not draining:
            return
        self._serving, self._witnessed = now
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def drain(self) -> None:
        """NOT_SERVING from now on; watchers are told, and their streams end."""
        self._draining = True
        self.publish(serving=False)

    async def Check(  # noqa: N802  the proto's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that there is not."""
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return Response(status=self._status(request.service))

    async def Watch(  # noqa: N802  the proto's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """The status now and each time that it changes, until the server drains."""
        await sealed(context, lambda: self._held_watch(request.service, context))

    async def _held_watch(self, service: str, context: Context) -> None:
        hold = Hold()
        with self._counted(context.peer() or ""):
            async with hold.endings(), hold.until(asyncio.ensure_future(self._lost(context))):
                await self._watch(service, context)

    @contextmanager
    def _counted(self, connection: str) -> Iterator[None]:
        watches = self._watches
        if watches[connection] >= WATCHES_PER_CONNECTION or watches.total() >= WATCHES:
            raise LimitExceeded(
                "Health is watched too often already; use one Watch for each connection, or Check.",
                reason="LIMIT_HEALTH_WATCHES",
                retry_after_s=5.0,
            )
        watches[connection] += 1
        try:
            yield
        finally:
            watches[connection] -= 1
            if watches[connection] == 0:
                del watches[connection]

    async def _watch(self, service: str, context: Context) -> None:
        last = None
        while True:
            changed, draining = self._changed, self._draining
            status = self._status(service)
            if status != last:
                try:
                    async with asyncio.timeout(WRITE_DEADLINE_S):
                        await context.write(Response(status=status))
                except TimeoutError:
                    raise Cancelled("The watcher takes nothing.", reason="CLIENT_STALLED") from None
            if draining:
                return
            last = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in SERVICES:
            return int(Response.SERVICE_UNKNOWN)
        serving = self._witnessed if service == WITNESS else self._serving
        return int(Response.SERVING if serving else Response.NOT_SERVING)


class HealthMonitor:
    """Runs the checks and tells the servicer. A check raises when it fails; failing: the checks
    that did so at last, with their reasons. witness: the check of WITNESS, on which the others'
    status does not depend; None: unwitnessed.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        interval_s: float = INTERVAL_S,
        lost: Lost = _never,
        meter: Meter = SILENT,
        witness: Check | None = None,
    ) -> None:
        self._meter = meter
        self._witness = witness
        self.servicer = HealthServicer(lost)
        self._checks = dict(checks)
        if witness is not None:
            self._checks["witness"] = witness
        self._interval_s = interval_s
        self.failing: dict[str, str] = {}

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._interval_s)

    async def refresh(self) -> None:
        """Run every check once, side by side; a failure is published at once, whatever the others
        still do.
        """
        reasons = await asyncio.gather(*(self._run(name) for name in self._checks))
        failing = {
            name: reason for name, reason in zip(self._checks, reasons, strict=True) if reason
        }
        for name in self.failing.keys() - failing.keys():
            log.info("health.recovered", extra={"component": name})
        for name in self._checks:
            self._meter.healthy(name, healthy=name not in failing)
        self.failing = failing
        witnessed = self._witness is not None and "witness" not in failing
        self.servicer.publish(serving=not failing.keys() - {"witness"}, witnessed=witnessed)

    async def _run(self, name: str) -> str:
        reason = await self._reason(self._checks[name])
        if reason:
            if name != "witness":
                self.servicer.publish(serving=False)
            if name not in self.failing:
                log.error("health.failing", extra={"component": name, "reason": reason})
        return reason

    async def _reason(self, check: Check) -> str:
        try:
            async with asyncio.timeout(CHECK_DEADLINE_S):
                await check()
        except TimeoutError:
            return "TIMEOUT"
        except IronworkError as error:
            return error.reason
        except Exception as error:  # noqa: BLE001  a check that cannot be made has failed
            log.error("error.unexpected", extra=described(error))  # noqa: TRY400
            return "INTERNAL"
        return ""

    async def drain(self) -> None:
        """NOT_SERVING from now on, whatever the checks say."""
        self.servicer.drain()
