"""The journal: audit events into a tlog-tiles log, durably, in order (ADR 0020)."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from ironwork_audit import Event, render
from ironwork_audit.log import (
    AppendLog,
    FileSystem,
    LogUnusable,
    OperatingSystem,
    Tree,
    WriteFailed,
)
from ironwork_audit.tlog import BadTile, TileReader
from ironwork_server.core.values import AuditEvent, AuditReference
from ironwork_server.journal.aside import Aside
from ironwork_server.journal.events import own_event, to_event
from ironwork_server.journal.reader import JournalReader
from ironwork_server.journal.state import UNFINISHED, LogState
from ironwork_server.journal.writer import (
    MAX_COMMIT_EVENTS,
    Request,
    Tuning,
    Writer,
    unavailable,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")

# How many indexes of unfinished intents are named; the count is always whole.
_NAMED_INDEXES: Final = 20


def _now() -> datetime:
    return datetime.now(UTC)


def _nothing(*_: object) -> None:
    """For whoever does not listen."""


class FileJournal:
    """Implements core.ports.Journal. Made by `open`; used from any event loop, closed once.

    Fail closed: after a failure every append raises Unavailable (AUDIT_UNAVAILABLE). A full disk
    is tried again by itself; anything else lasts until a restart (ironwork_audit.log.pending has
    the table).
    """

    def __init__(
        self, log: AppendLog, state: LogState, tuning: Tuning, undecided: Sequence[int]
    ) -> None:
        self._log = log
        self._undecided = undecided
        self._state = state
        self._deadline_s = tuning.deadline_s
        self._writer = Writer(log, tuning)
        self._aside = Aside("audit-tiles")
        self._closed = False

    @classmethod
    def open(
        cls,
        folder: Path,
        origin: str,
        *,
        on_failure: Callable[[str], None] = _nothing,
        on_recovery: Callable[[], None] = _nothing,
        deadline_s: float = 5.0,
        max_pending: int = 4096,
        probe_s: float = 1.0,
        clock: Callable[[], datetime] = _now,
        file_system: FileSystem | None = None,
    ) -> Self:
        """Open the folder's log, or make one. Blocks: call it before serving.

        What a crash left after the last whole commit is cut off (event `journal.recovered`), and
        intents that never got an outcome are marked (event `journal.unfinished`). Parameters:
        Tuning. Raises JournalError: in use, another origin's, damaged, or unusable.
        """
        tuning = Tuning(deadline_s, max_pending, probe_s, clock, on_failure, on_recovery)
        state = LogState()
        log = AppendLog.open(
            folder, origin, fold=state, file_system=file_system or OperatingSystem()
        )
        undecided = tuple(state.undecided.values())
        try:
            _note(log, state, clock())
        except WriteFailed as failed:
            log.close()
            raise LogUnusable(
                f"the audit log in {folder} cannot be written: {failed.what}"
            ) from None
        journal = cls(log, state, tuning, undecided)
        journal._writer.start()
        return journal

    @property
    def origin(self) -> str:
        return self._log.origin

    @property
    def folder_id(self) -> str:
        """The folder's own: a log of the same origin in another folder has another."""
        return self._log.folder_id

    @property
    def tree(self) -> Tree:
        """The tree of the entries that are in durable tiles."""
        return self._log.tree

    @property
    def healthy(self) -> bool:
        """Whether an append would be tried now."""
        return self._writer.problem is None

    @property
    def problem(self) -> str | None:
        """What is wrong, for health and people; None while healthy."""
        return self._writer.problem

    async def append(self, *events: AuditEvent) -> Sequence[AuditReference]:
        """See core.ports.Journal. Events of one call stand side by side, at most 64.

        Cancelled or past its deadline, the events may still be written: an intent without an act,
        never an act without an intent. FieldRefused, ValueError: the caller's code is wrong.
        """
        if len(events) > MAX_COMMIT_EVENTS:
            raise ValueError(f"at most {MAX_COMMIT_EVENTS} events in one append")
        if not events:
            return ()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[AuditReference]] = loop.create_future()
        self._writer.submit(Request([to_event(event) for event in events], future, loop))
        try:
            async with asyncio.timeout(self._deadline_s):
                return await future
        except TimeoutError:
            _log.error("journal.no_answer", extra={"window_s": self._deadline_s})
            raise unavailable() from None

    def was_deleted(self, workspace: str, key_id: str) -> bool:
        return self._state.was_deleted(workspace, key_id)

    @property
    def undecided(self) -> Sequence[int]:
        """Indexes of entries of earlier runs that leave open whether a write was done: intents of
        deletions without an outcome, and outcomes that say undecided. Fixed when it is opened.
        """
        return self._undecided

    def reader(self) -> JournalReader:
        """A reader of what is durable in this journal; it follows as the journal grows."""
        return JournalReader(self._log)

    @property
    def due(self) -> int:
        """The index after the last entry that a checkpoint is due for: any but `hsm.sign`."""
        return self._writer.due

    async def integrate(self) -> Tree:
        """Put every durable entry into the tree's tiles; the tree that they are. Raises
        Unavailable (AUDIT_UNAVAILABLE).
        """
        return await self._aside_of_calls(self._log.integrate)

    async def publish(self, checkpoint: bytes) -> None:
        """Replace the published checkpoint: a signed note of a tree that `integrate` gave. Raises
        Unavailable (AUDIT_UNAVAILABLE).
        """
        await self._aside_of_calls(partial(self._log.publish, checkpoint))

    def checkpoint(self) -> bytes | None:
        """The published checkpoint; None before the first. Raises OSError."""
        return self._log.checkpoint()

    async def tree_at(self, size: int) -> Tree | None:
        """The tree as it was at this size; None where the tiles hold fewer entries. Raises
        Unavailable (AUDIT_UNAVAILABLE).
        """
        try:
            return await self._aside_of_calls(partial(self._log.tree_at, size))
        except (OSError, BadTile):
            _log.error("journal.tiles_failed", extra={"problem": "tiles cannot be read"})
            raise unavailable() from None

    def hashes(self, size: int) -> TileReader:
        """The tree's hashes as of a size that is in tiles; its reads block. See AppendLog."""
        return self._log.hashes(size)

    async def close(self) -> None:
        """Write what waits, end the thread, release the folder. Safe to call again."""
        if not await asyncio.to_thread(self._writer.stop, self._deadline_s):
            # The thread is inside a call on the file: the descriptor must stay its own.
            _log.error("journal.left_open")
            return
        if self._closed:
            return
        self._closed = True
        try:
            await self._aside.idle(deadline_s=self._deadline_s)
            await self._aside.run(self._log.close, deadline_s=self._deadline_s)
        except TimeoutError:
            _log.error("journal.left_open")

    async def _aside_of_calls(self, work: Callable[[], T]) -> T:
        try:
            return await self._aside.run(work, deadline_s=self._deadline_s)
        except TimeoutError:
            _log.error("journal.no_answer", extra={"window_s": self._deadline_s})
        except WriteFailed as failed:
            _log.error("journal.tiles_failed", extra={"problem": failed.what})
            if failed.lasting:
                self._writer.give_up(failed)
        raise unavailable() from None


def _note(log: AppendLog, state: LogState, now: datetime) -> None:
    """Append what was found at the start. Raises WriteFailed."""
    events: list[Event] = []
    if log.torn_bytes:
        events.append(own_event("journal.recovered", now, {"bytes": log.torn_bytes}))
    if state.unfinished:
        first = ",".join(map(str, list(state.unfinished)[:_NAMED_INDEXES]))
        details: dict[str, str | int] = {"count": len(state.unfinished), "first_indexes": first}
        events.append(own_event(UNFINISHED, now, details))
    if events:
        log.append(
            [
                lambda index, event=event: render(  # type: ignore[misc]  # bound in the loop
                    event, origin=log.origin, sequence=index, logged_time=now
                )
                for event in events
            ]
        )
