"""Refusals of identified principals: each on record, until there are too many to write one by one.

A principal that is refused again and again must not be able to fill the log's disk, whose end
would stop the service. Beyond a rate, the first refusal of a kind in a window is still written at
once; those after it are counted, and written together when the window is over.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from ironwork_server.access.limits import RefusalAggregator, RefusalSummary
from ironwork_server.access.rates import Rates
from ironwork_server.core.ports import Journal
from ironwork_server.core.values import AuditEvent, Claims
from ironwork_server.custody.uninterrupted import uninterrupted

# One by one: so many at once, and so many a second after that.
BURST = 30
PER_S = 0.5
WINDOW_S = 10.0
# Principals that are counted apart; certificates of our own CAs with a role are needed for each.
MAX_PRINCIPALS = 1024
# Counts that wait for a log that cannot be written; then refusals fail like all else.
MAX_DUE = 4096


class _Account:
    """What is counted of one principal: by operation and reason, with one of each kind."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.counts = RefusalAggregator(window_s=WINDOW_S, clock=clock)
        # By kind, as many as the counts tell apart; "" is whichever came last.
        self._samples: dict[str, AuditEvent] = {}

    def count(self, event: AuditEvent) -> RefusalSummary | None:
        """Count it; the summary to write now, if one is due."""
        kind = f"{event.operation} {event.reason}"
        self._samples[kind] = self._samples[""] = event
        return self.counts.refused(kind)

    def counted(self, summary: RefusalSummary) -> AuditEvent:
        """What is the same of all that were counted: who, what, and why."""
        return replace(
            self._samples.get(summary.reason, self._samples[""]),
            correlation_id=str(uuid.uuid4()),
            time=datetime.now(UTC),
            key_id="",
            claims=Claims(),
            details={"count": summary.count, "window_s": round(summary.seconds)},
        )


class Refusals:
    """Writes refusals to the journal, one by one or counted. Used from one event loop."""

    def __init__(self, journal: Journal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._clock = clock
        self._rates = Rates(per_s=PER_S, burst=BURST, clock=clock)
        self._accounts: dict[str, _Account] = {}
        # Counted and not yet durable; nothing is taken from the accounts while some are left.
        self._due: list[AuditEvent] = []

    async def record(self, event: AuditEvent) -> None:
        """Durable when it returns, or counted. Errors: Unavailable."""
        if self._rates.take(event.principal) or len(self._due) >= MAX_DUE:
            await self._journal.append(event)
            return
        account = self._account(event.principal)
        summary = account.count(event)
        if summary is not None and summary.seconds == 0:
            await self._journal.append(event)
        elif summary is not None:
            self._due.append(account.counted(summary))

    async def flush(self) -> None:
        """Write the counts of windows that are over; to be called at intervals. Errors:
        Unavailable, and then they are kept for the next time.
        """
        if not self._due:
            for name, account in list(self._accounts.items()):
                self._due += map(account.counted, account.counts.due())
                if account.counts.quiet:
                    del self._accounts[name]
        await self._write()

    async def close(self) -> None:
        """Write all counts, at the end of serving. Errors: Unavailable."""
        for account in self._accounts.values():
            self._due += map(account.counted, account.counts.rest())
        self._accounts.clear()
        await self._write()

    async def _write(self) -> None:
        while self._due:
            # Whole or not at all, so that no count is written twice.
            await uninterrupted(self._journal.append(self._due[0]))
            del self._due[0]

    def _account(self, principal: str) -> _Account:
        full = principal not in self._accounts and len(self._accounts) >= MAX_PRINCIPALS
        # The sample then names whoever came last.
        return self._accounts.setdefault("" if full else principal, _Account(self._clock))
