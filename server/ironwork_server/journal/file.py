"""The journal as a plain, fsync'd file of OCSF events (ADR 0009)."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from ironwork_audit import Event, render
from ironwork_server.core.values import AuditEvent, AuditReference
from ironwork_server.journal import folder as folders
from ironwork_server.journal.errors import JournalUnusable
from ironwork_server.journal.events import own_event, to_event
from ironwork_server.journal.filesystem import FileSystem, OperatingSystem
from ironwork_server.journal.logfile import CommitFailed, LogFile
from ironwork_server.journal.reader import JournalReader
from ironwork_server.journal.scan import MAX_COMMIT_BYTES, UNFINISHED, Scanned, scan
from ironwork_server.journal.writer import (
    MAX_COMMIT_EVENTS,
    Request,
    Tuning,
    Writer,
    unavailable,
)

_log = logging.getLogger(__name__)

# How many indexes of unfinished intents are named; the count is always whole.
_NAMED_INDEXES: Final = 20


def _now() -> datetime:
    return datetime.now(UTC)


def _nothing(*_: object) -> None:
    """For whoever does not listen."""


class FileJournal:
    """Implements core.ports.Journal. Made by `open`; used from any event loop, closed once.

    Fail closed: after a failure every append raises Unavailable (AUDIT_UNAVAILABLE). A full disk
    is tried again by itself; anything else lasts until a restart. logfile.py has the table.
    """

    def __init__(
        self, folder: Path, origin: str, log: LogFile, state: Scanned, tuning: Tuning
    ) -> None:
        self._folder = folder
        self._origin = origin
        self._log = log
        self._deleted = state.deleted
        self._deadline_s = tuning.deadline_s
        self._writer = Writer(log, origin, state.deleted, tuning)
        self._resources = contextlib.ExitStack()

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
        """Open the folder's journal, or make one. Reads the whole file: call it before serving.

        Cuts off what a crash left after the last whole entry (event `journal.recovered`) and
        marks intents that never got an outcome (event `journal.unfinished`). Parameters: Tuning.
        Raises JournalError: in use, another origin's, damaged, or unusable.
        """
        tuning = Tuning(deadline_s, max_pending, probe_s, clock, on_failure, on_recovery)
        try:
            with contextlib.ExitStack() as stack:
                folders.prepare(folder)
                stack.callback(os.close, folders.lock(folder))
                fd = folders.open_log(folder, origin)
                stack.callback(os.close, fd)
                with open(fd, "rb", buffering=1 << 20, closefd=False) as file:
                    state = scan(file, origin)
                path = folder / folders.LOG_NAME
                log = LogFile(path, fd, state.extent, file_system or OperatingSystem())
                log.restore(MAX_COMMIT_BYTES)
                _note(log, origin, state, clock())
                journal = cls(folder, origin, log, state, tuning)
                journal._resources = stack.pop_all()
        except OSError as error:
            raise JournalUnusable(
                f"the audit journal in {folder} cannot be used: {error.strerror}"
            ) from None
        except CommitFailed as failed:
            raise JournalUnusable(
                f"the audit journal in {folder} cannot be written: {failed.what}"
            ) from None
        journal._writer.start()
        return journal

    @property
    def origin(self) -> str:
        return self._origin

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
        return (workspace, key_id) in self._deleted

    def reader(self) -> JournalReader:
        """A reader of what is durable in this journal; it follows as the journal grows."""
        return JournalReader(self._folder / folders.LOG_NAME, self._log.extent)

    async def close(self) -> None:
        """Write what waits, end the thread, release the folder. Safe to call again."""
        if await asyncio.to_thread(self._writer.stop, self._deadline_s):
            self._resources.close()
        else:
            # The thread is inside a call on the file: the descriptor must stay its own.
            _log.error("journal.left_open")


def _note(log: LogFile, origin: str, state: Scanned, now: datetime) -> None:
    """Append what was found at the start. Raises CommitFailed."""
    events: list[Event] = []
    if state.torn_bytes:
        events.append(own_event("journal.recovered", now, {"bytes": state.torn_bytes}))
    if state.unfinished:
        first = ",".join(map(str, list(state.unfinished)[:_NAMED_INDEXES]))
        details: dict[str, str | int] = {"count": len(state.unfinished), "first_indexes": first}
        events.append(own_event(UNFINISHED, now, details))
    first_index, _ = log.extent.end
    lines = [
        render(event, origin=origin, sequence=index, logged_time=now) + b"\n"
        for index, event in enumerate(events, first_index)
    ]
    if lines:
        log.commit(lines)
