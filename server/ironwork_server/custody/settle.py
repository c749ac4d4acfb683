"""What became of writes whose end nobody was told: looked up in the store, and put on record.

A write that had begun when its deadline passed, or that failed on the device, may be done or not.
Its call fails as STORE_UNDECIDED, which says neither; so does the kill of a process between a
deletion and its outcome. Here each gets a second outcome, under the same intent, that says what the
store holds: the key's row is there, or it is not.
"""

import asyncio
import logging
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime

from ironwork_audit import INTENT, OUTCOME, Event, parse
from ironwork_server.core.errors import IronworkError
from ironwork_server.core.ports import Journal, KeyStore
from ironwork_server.core.values import Action, AuditEvent, Phase
from ironwork_server.journal import EntryFilter, JournalReader
from ironwork_server.store import REASON_UNDECIDED

log = logging.getLogger(__name__)

RETRY_S = 1.0
# Undecided calls that wait; the log keeps those beyond it for the next start.
MAX_WAITING = 1000
_PAGE = 1000


class Settler:
    """started: entries before it are an earlier run's (aware, by the clock of the log)."""

    def __init__(
        self,
        *,
        store: KeyStore,
        journal: Journal,
        reader: JournalReader,
        started: datetime | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._store = store
        self._journal = journal
        self._reader = reader
        self._started = started or datetime.now(UTC)
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
        recalled = False
        while True:
            try:
                if not recalled:
                    await self._recall()
                    recalled = True
                await self._settle_waiting()
            except IronworkError as error:
                log.warning("settle.failed", extra={"reason": error.reason})
                await asyncio.sleep(self._retry_s)
            else:
                self._more.clear()
                await self._more.wait()

    async def _recall(self) -> None:
        """Find what an earlier run left undecided, or was killed over."""
        found: list[AuditEvent] = []
        for operation in (Action.ADD_KEY.value, Action.DELETE_KEY.value):
            found += await self._open(operation)
        for outcome in found:
            self.undecided(outcome)

    async def _open(self, operation: str) -> list[AuditEvent]:
        wanted = EntryFilter(operation=operation, end_time=self._started)
        open_: dict[int, AuditEvent] = {}
        after: int | None = -1
        while after is not None:
            page = await self._reader.page(after_index=after, limit=_PAGE, filter=wanted)
            for index, entry in page.entries:
                _follow(open_, index, parse(entry).event)
            after = page.next_index
        return list(open_.values())

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


def _follow(open_: dict[int, AuditEvent], index: int, event: Event) -> None:
    """Keep what is undecided so far, by its intent's index. An AddKey's intent does not know the
    key's id yet, so one that was killed stays with `journal.unfinished`.
    """
    if event.phase == INTENT and event.key_id:
        open_[index] = _outcome(event, index)
    elif event.phase == OUTCOME and event.intent_index is not None:
        open_.pop(event.intent_index, None)
        if event.reason == REASON_UNDECIDED and event.key_id:
            open_[event.intent_index] = _outcome(event, event.intent_index)


def _outcome(event: Event, intent_index: int) -> AuditEvent:
    return AuditEvent(
        phase=Phase.OUTCOME,
        operation=event.operation,
        correlation_id=event.correlation_id,
        time=event.time,
        principal=event.principal,
        role=event.role,
        workspace=event.workspace,
        key_id=event.key_id,
        intent_index=intent_index,
    )
