"""One thread that makes appends durable, in order, many with one sync (group commit)."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ironwork_audit import Event, render
from ironwork_audit.log import AppendLog, WriteFailed
from ironwork_audit.publishing import SIGN
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.values import AuditReference
from ironwork_server.journal.events import own_event

_log = logging.getLogger(__name__)

# An event is under 24 KiB (a test computes it), so a commit is under 2 MiB.
MAX_COMMIT_EVENTS: Final = 64

# How often the log's folder is looked at, so that health tells what no call has met yet, and a busy
# log stops where the folder is read-only and only its open files still take writes.
LOOK_S: Final = 0.25

Result = Sequence[AuditReference] | Unavailable


def unavailable() -> Unavailable:
    """The one refusal. What exactly failed is for logs and health, not for callers."""
    return Unavailable(
        "The audit log cannot be written, so nothing was done. Try again later.",
        reason="AUDIT_UNAVAILABLE",
        retry_after_s=1.0,
    )


@dataclass(frozen=True, slots=True)
class Tuning:
    """deadline_s: how long an append may take. max_pending: how many events may wait. probe_s: how
    often a full disk is tried again. clock: the time of writing. on_failure, on_recovery: called
    on the writer's thread when the journal stops or resumes; they neither block nor raise.
    """

    deadline_s: float
    max_pending: int
    probe_s: float
    clock: Callable[[], datetime]
    on_failure: Callable[[str], None]
    on_recovery: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Request:
    """One append. future belongs to loop and is touched on it only."""

    events: Sequence[Event]
    future: asyncio.Future[Sequence[AuditReference]]
    loop: asyncio.AbstractEventLoop


class Writer:
    """Owns the queue and the thread, and is the one that appends to the log."""

    def __init__(self, log: AppendLog, tuning: Tuning) -> None:
        self._log = log
        self._origin = log.origin
        self._tuning = tuning
        # Guards the fields below it.
        self._condition = threading.Condition()
        self._queue: deque[Request] = deque()
        self._pending = 0
        self._refused = 0
        self._failed_at: float | None = None
        self._problem: WriteFailed | None = None
        self._stopping = False
        # Set by the thread alone: the index after the last entry that a checkpoint is due for.
        self.due = 0
        # Likewise: since when (time.monotonic) it has been writing, and when it looked last.
        self._busy_since: float | None = None
        self._looked_at = time.monotonic()
        # A daemon, so that a disk that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="audit-journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why nothing can be written now; None while all is well."""
        problem = self._problem
        if problem is not None:
            return problem.what
        if self._stopping:
            return "the journal is closed"
        return "the disk does not answer" if self._hangs() else None

    def submit(self, request: Request) -> None:
        """Queue it; its future is settled later. Raises Unavailable at once where it cannot be."""
        with self._condition:
            size = len(request.events)
            full = self._pending + size > self._tuning.max_pending
            if full or self.problem is not None:
                self._refused += size
                raise unavailable()
            self._pending += size
            self._queue.append(request)
            self._condition.notify()

    def stop(self, timeout_s: float) -> bool:
        """Write what is queued and end the thread; whether it ended in time. Blocks."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _hangs(self) -> bool:
        since = self._busy_since
        return since is not None and time.monotonic() - since > self._tuning.deadline_s

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                if batch:
                    self._write_where_well(batch)
                elif self._problem is None:
                    self._look()
                else:
                    self._probe()
        finally:
            # Reached in order when stopping, or by an error of this code: then all fails closed.
            if not self._stopping:
                self._give_up(WriteFailed("the journal's writer stopped", lasting=True), [])

    def _next(self) -> list[Request] | None:
        """The next batch; empty after a pause in which none came; None to end."""
        with self._condition:
            while not self._queue:
                if self._stopping:
                    return None
                if not self._condition.wait(self._pause()):
                    return []
            batch = [self._queue.popleft()]
            size = len(batch[0].events)
            while self._queue and size + len(self._queue[0].events) <= MAX_COMMIT_EVENTS:
                size += len(self._queue[0].events)
                batch.append(self._queue.popleft())
            return batch

    def _pause(self) -> float | None:
        problem = self._problem
        if problem is None:
            return LOOK_S
        return None if problem.lasting else self._tuning.probe_s

    def _write_where_well(self, batch: Sequence[Request]) -> None:
        due = time.monotonic() - self._looked_at > LOOK_S
        if not due or self._look(batch):
            self._write(batch)

    def _write(self, batch: Sequence[Request]) -> None:
        events = [event for request in batch for event in request.events]
        try:
            index = self._commit(events)
        except WriteFailed as problem:
            self._give_up(problem, batch)
            return
        results: list[tuple[Request, Result]] = []
        for request in batch:
            indexes = range(index, index + len(request.events))
            results.append((request, [AuditReference(self._origin, at) for at in indexes]))
            index += len(request.events)
        self._settle(results)

    def _look(self, batch: Sequence[Request] = ()) -> bool:
        """Whether the log can take something; else the batch is refused."""
        self._busy_since = self._looked_at = time.monotonic()
        try:
            self._log.check()
        except WriteFailed as problem:
            self._give_up(problem, batch)
            return False
        finally:
            self._busy_since = None
        return True

    def _probe(self) -> None:
        """Try a full disk again, with the entry that says how long nothing could be written."""
        with self._condition:
            refused, since = self._refused, self._failed_at
        window_s = 0 if since is None else int(time.monotonic() - since)
        details = {"count": refused, "window_s": window_s}
        try:
            self._log.check()
            self._commit([own_event("journal.resumed", self._tuning.clock(), details)])
        except WriteFailed as problem:
            if problem.lasting:
                self._give_up(problem, [])
            return
        with self._condition:
            self._problem, self._failed_at = None, None
            self._refused -= refused
        _log.warning("journal.resumed", extra={"window_s": window_s})
        self._tuning.on_recovery()

    def _commit(self, events: Sequence[Event]) -> int:
        """Make them durable; the first one's index."""
        now = self._tuning.clock()
        self._busy_since = time.monotonic()
        try:
            first = self._log.append([self._rendering(event, now) for event in events])
        finally:
            self._busy_since = None
        for index, event in enumerate(events, first):
            if event.operation != SIGN:
                self.due = index + 1
        return first

    def _rendering(self, event: Event, now: datetime) -> Callable[[int], bytes]:
        return lambda index: render(event, origin=self._origin, sequence=index, logged_time=now)

    def give_up(self, problem: WriteFailed) -> None:
        """Refuse everything from now on: the log failed elsewhere. From any thread."""
        self._give_up(problem, [])

    def _give_up(self, problem: WriteFailed, batch: Sequence[Request]) -> None:
        """Refuse the batch and all that waits, and everything that comes while this lasts."""
        with self._condition:
            self._problem = problem
            if self._failed_at is None:
                self._failed_at = time.monotonic()
            requests = [*batch, *self._queue]
            self._queue.clear()
            self._refused += sum(len(request.events) for request in requests)
        _log.error("journal.failed", extra={"problem": problem.what})
        # Health hears of it before any caller does.
        self._tuning.on_failure(problem.what)
        self._settle([(request, unavailable()) for request in requests])

    def _settle(self, results: Sequence[tuple[Request, Result]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Result]]] = {}
        for request, result in results:
            by_loop.setdefault(request.loop, []).append((request, result))
        with self._condition:
            self._pending -= sum(len(request.events) for request, _ in results)
        for loop, settled in by_loop.items():
            # RuntimeError: the loop is closed, so nobody waits there any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, settled)


def _deliver(settled: Sequence[tuple[Request, Result]]) -> None:
    """On the loop: a future that is done was abandoned (cancelled, or past its deadline)."""
    for request, result in settled:
        if request.future.done():
            continue
        if isinstance(result, Unavailable):
            request.future.set_exception(result)
        else:
            request.future.set_result(result)
