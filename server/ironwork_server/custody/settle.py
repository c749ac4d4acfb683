"""What became of writes whose end nobody was told: looked up in the store, and put on record.

A write that had begun when its deadline passed, or that failed on the device, may be done or not.
Its call fails as STORE_UNDECIDED, which says neither; so does the kill of a process between a
deletion and its outcome. Here each gets a second outcome, under the same intent, that says what the
store holds: the key's row is there, or it is not.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ironwork_audit import Event, parse
from ironwork_server.core.errors import DataLoss, IronworkError, OutOfRange
from ironwork_server.core.ports import Journal, KeyStore
from ironwork_server.core.values import Action, AuditEvent, Phase
from ironwork_server.journal import EntryFilter, JournalReader
from ironwork_server.store import REASON_UNDECIDED

log = logging.getLogger(__name__)

RETRY_S = 1.0
# Undecided calls that wait; the log keeps those beyond it for the next start.
MAX_WAITING = 1000
_ANY = EntryFilter()


class Settler:
    """left: indexes of the entries by which earlier runs left a write open."""

    def __init__(
        self,
        *,
        store: KeyStore,
        journal: Journal,
        reader: JournalReader,
        left: Sequence[int] = (),
        retry_s: float = RETRY_S,
    ) -> None:
        self._store = store
        self._journal = journal
        self._reader = reader
        self._left = deque(left)
        self._retry_s = retry_s
        self._waiting: deque[AuditEvent] = deque()
        self._more = asyncio.Event()

    def undecided(self, outcome: AuditEvent) -> None:
        """A call ended so, and its outcome is on record: settle it soon."""
        if outcome.key_id and len(self._waiting) < MAX_WAITING:
            self._waiting.append(outcome)
            self._more.set()

    async def run(self) -> None:
        """Settle what an earlier run left, and then what comes; until cancelled."""
        while True:
            try:
                await self._settle_left()
                await self._settle_waiting()
            except IronworkError as error:
                log.warning("settle.failed", extra={"reason": error.reason})
                await asyncio.sleep(self._retry_s)
            else:
                self._more.clear()
                await self._more.wait()

    async def _settle_left(self) -> None:
        while self._left:
            outcome = await self._outcome(self._left[0])
            if outcome is None:
                log.error("settle.skipped")
            else:
                await self._settle(outcome)
            self._left.popleft()

    async def _outcome(self, index: int) -> AuditEvent | None:
        """What the entry leaves open, as the outcome that is missing. None where there is no such
        entry (any more), or it leaves nothing open: a snapshot was forged or damaged, and the other
        writes are settled all the same.
        """
        try:
            page = await self._reader.page(after_index=index - 1, limit=1, filter=_ANY)
            ((_, entry),) = page.entries
            event = parse(entry).event
        except (DataLoss, OutOfRange, ValueError):  # NotAnEvent is a ValueError
            return None
        if not _is_open(event):
            return None
        return AuditEvent(
            phase=Phase.OUTCOME,
            operation=event.operation,
            correlation_id=event.correlation_id,
            time=event.time,
            principal=event.principal,
            role=event.role,
            workspace=event.workspace,
            key_id=event.key_id,
            # An intent that no outcome names is the one to be named.
            intent_index=index if event.intent_index is None else event.intent_index,
        )

    async def _settle_waiting(self) -> None:
        while self._waiting:
            await self._settle(self._waiting[0])
            self._waiting.popleft()

    async def _settle(self, undecided: AuditEvent) -> None:
        present = await self._store.settled(undecided.workspace, undecided.key_id)
        adding = undecided.operation == Action.ADD_KEY.value
        await self._journal.append(
            replace(
                undecided,
                time=datetime.now(UTC),
                success=present == adding,
                reason="ROW_PRESENT" if present else "ROW_ABSENT",
                details={},
            )
        )


def _is_open(event: Event) -> bool:
    """As the log's state says: a deletion's intent, or an outcome that says undecided, of a key."""
    deleting = event.phase == Phase.INTENT.value and event.operation == Action.DELETE_KEY.value
    undecided = event.phase == Phase.OUTCOME.value and event.reason == REASON_UNDECIDED
    return bool(event.key_id) and (deleting or undecided)
