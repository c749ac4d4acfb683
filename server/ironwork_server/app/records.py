"""Audit events of the service itself: start and stop, reloads, refused peers."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from ironwork_server.access.limits import RefusalAggregator, RefusalSummary
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.ports import Journal
from ironwork_server.core.values import AuditEvent, Phase

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 1.0
MAX_PENDING = 100


class ServiceRecords:
    """Writes what no call of a client causes. Refusals of unauthenticated peers are aggregated:
    whoever has a certificate of a trusted CA but no identity must not be able to fill the log.
    """

    def __init__(self, journal: Journal, *, meter: Meter = SILENT) -> None:
        self._journal = journal
        self._meter = meter
        self._refusals = RefusalAggregator()
        self._pending: list[RefusalSummary] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Record start and stop, and summaries in between."""
        await self._write("service.start", success=True)
        flushing = asyncio.create_task(self._flush_regularly())
        try:
            yield
        finally:
            flushing.cancel()
            await asyncio.wait([flushing])
            await self._flush(self._refusals.rest())
            await self._write_or_log("service.stop", success=True)

    def refused(self, reason: str) -> None:
        """A peer passed TLS and has no valid identity."""
        self._meter.refused(reason)
        summary = self._refusals.refused(reason)
        if summary is not None and len(self._pending) < MAX_PENDING:
            self._pending.append(summary)

    async def policy_reloaded(self, version: str) -> None:
        """New policies are in force."""
        log.info("policy.reloaded", extra={"version": version})
        self._meter.reloaded("policy", success=True)
        await self._write_or_log("policy.reload", success=True, policy_version=version)

    async def certificates_reloaded(self) -> None:
        """New certificates are in force at the next handshake."""
        log.info("tls.reloaded")
        self._meter.reloaded("tls", success=True)
        await self._write_or_log("certificate.reload", success=True)

    async def reload_failed(self, component: str) -> None:
        """Files changed into something unusable; the old ones stay in force."""
        self._meter.reloaded(component, success=False)
        operation = "policy.reload" if component == "policy" else "certificate.reload"
        await self._write_or_log(operation, success=False, reason="RELOAD_FAILED")

    async def witness_conflict(self, witness: str, reason: str, size: int) -> None:
        """A witness knows another history of this log than our tree of this size."""
        await self._write_or_log(
            "witness.conflict", success=False, reason=reason, witness=witness, count=size
        )

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            await self._flush(self._refusals.due())

    async def _flush(self, summaries: Sequence[RefusalSummary]) -> None:
        self._pending += summaries
        # One by one, so that a flush that is cut short leaves the rest to the next.
        while self._pending:
            summary = self._pending.pop(0)
            log.warning("peer.refused", extra={"reason": summary.reason, "count": summary.count})
            await self._write_or_log(
                "auth.refused",
                success=False,
                reason=summary.reason,
                count=summary.count,
                window_s=round(summary.seconds),
            )

    async def _write_or_log(
        self, operation: str, *, success: bool, reason: str = "", **details: str | int
    ) -> None:
        try:
            await self._write(operation, success=success, reason=reason, **details)
        except Unavailable:
            # Health says the same, and no call is served while the log cannot be written.
            log.error("audit.unavailable", extra={"reason": operation})  # noqa: TRY400

    async def _write(
        self, operation: str, *, success: bool, reason: str = "", **details: str | int
    ) -> None:
        await self._journal.append(
            AuditEvent(
                phase=Phase.EVENT,
                operation=operation,
                correlation_id=str(uuid.uuid4()),
                time=datetime.now(UTC),
                success=success,
                reason=reason,
                details=details,
            )
        )
