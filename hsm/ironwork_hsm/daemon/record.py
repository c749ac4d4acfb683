"""The process' own record: what is in it was durable before the device was asked (ADR 0019).

A tlog-tiles log (ironwork_audit.log) in a folder of its own that one process holds; its entries are
OCSF events. One thread appends: it takes what is queued and makes it durable with one sync (group
commit). Another puts what is durable into tiles, each second where the record is not signed, else
whenever a checkpoint is made (checkpoints.py). Fail closed: what cannot be written is refused, for
good where the log says that its failure lasts.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from ironwork_audit import Event, render
from ironwork_audit.log import AppendLog, FileSystem, LogError, Tree, WriteFailed
from ironwork_audit.publishing import SIGN
from ironwork_audit.tlog import BadTile
from ironwork_hsm.interface import ConfigurationError, HsmError, Unavailable
from ironwork_hsm.lanes import Lanes, keep

# An event is under 16 KiB, and a commit of the log at most 2 MiB.
MAX_COMMIT_EVENTS: Final = 128
MAX_PENDING_EVENTS: Final = 16384
INTEGRATE_S: Final = 1.0
_CLOSE_S: Final = 5.0
_TILES_S: Final = 10.0

T = TypeVar("T")

# The index of the first event, or None where they are not durable: then nothing may be done.
Settled = Callable[[int | None], None]


@dataclass(frozen=True, slots=True)
class Intent:
    """An intent that is durable, for its outcome to name: the event, and its index."""

    event: Event
    index: int


class Record(Protocol):
    """Where operations are written down."""

    @property
    def origin(self) -> str:
        """The log's name."""

    @property
    def problem(self) -> str | None:
        """Why the last write failed; None while all is well."""

    def submit(self, events: Sequence[Event], settled: Settled) -> None:
        """Make them durable, side by side; settled hears of it on the loop, never before this
        returns. At most MAX_COMMIT_EVENTS.
        """

    async def append(self, *events: Event) -> int:
        """The same, awaited. Raises Unavailable."""

    async def close(self) -> None:
        """Write what waits and let the folder go."""


@dataclass(frozen=True, slots=True)
class _Request:
    events: Sequence[Event]
    settled: Settled


class LogRecord:
    """Implements Record. Made by `open_record` on the loop that it then belongs to. due: the index
    after the last entry that a checkpoint is due for: any but this record's own signing.
    """

    def __init__(self, log: AppendLog, *, signed: bool) -> None:
        self.due = 0
        self._log = log
        self._loop = asyncio.get_running_loop()
        # For what checkpoints ask of the log: its thread may hang where the disk does.
        self._tiles: Lanes[None] = Lanes(
            setup=lambda: None, teardown=keep, translate=_translate, count=1, capacity=1
        )
        self._tiles_started = False
        # Guards the fields below it.
        self._condition = threading.Condition()
        self._queue: deque[_Request] = deque()
        self._pending = 0
        self._problem: str | None = None
        self._lasting = False
        self._stopping = threading.Event()
        # Daemons, so that a disk that hangs does not keep the process from ending.
        self._threads = [
            threading.Thread(target=run, name=f"hsm-record-{name}", daemon=True)
            for name, run in (("append", self._append), ("tiles", self._integrate))
            if not (signed and name == "tiles")
        ]
        for thread in self._threads:
            thread.start()

    @property
    def origin(self) -> str:
        return self._log.origin

    @property
    def folder_id(self) -> str:
        """The folder's own: a record of the same origin in another folder has another."""
        return self._log.folder_id

    @property
    def size(self) -> int:
        """How many entries are durable."""
        return self._log.size

    @property
    def problem(self) -> str | None:
        return self._problem

    async def integrate(self) -> Tree:
        """Put every durable entry into the tree's tiles; the tree that they are. Raises
        Unavailable.
        """
        return await self._on_tiles(self._log.integrate)

    async def publish(self, checkpoint: bytes) -> None:
        """Replace the published checkpoint: a signed note of a tree that `integrate` gave. Raises
        Unavailable.
        """
        await self._on_tiles(partial(self._log.publish, checkpoint))

    def checkpoint(self) -> bytes | None:
        """The published checkpoint; None before the first. Blocks. Raises OSError."""
        return self._log.checkpoint()

    async def tree_at(self, size: int) -> Tree | None:
        """The tree as it was at this size; None where the tiles hold fewer entries. Raises
        Unavailable.
        """
        return await self._on_tiles(partial(self._log.tree_at, size))

    async def _on_tiles(self, work: Callable[[], T]) -> T:
        if not self._tiles_started:
            self._tiles_started = True
            await self._tiles.start(deadline_s=_TILES_S)
        return await self._tiles.run(lambda _: work(), deadline_s=_TILES_S)

    def submit(self, events: Sequence[Event], settled: Settled) -> None:
        """See Record.submit."""
        if not 1 <= len(events) <= MAX_COMMIT_EVENTS:
            raise ValueError(f"1 to {MAX_COMMIT_EVENTS} events in one append")
        with self._condition:
            full = self._pending + len(events) > MAX_PENDING_EVENTS
            if not (full or self._lasting or self._stopping.is_set()):
                self._pending += len(events)
                self._queue.append(_Request(events, settled))
                self._condition.notify()
                return
        self._loop.call_soon(settled, None)

    async def append(self, *events: Event) -> int:
        """See Record.append."""
        future: asyncio.Future[int | None] = self._loop.create_future()

        def settled(index: int | None) -> None:
            if not future.done():
                future.set_result(index)

        self.submit(events, settled)
        index = await future
        if index is None:
            raise unrecorded()
        return index

    async def close(self) -> None:
        """See Record.close."""
        with self._condition:
            self._stopping.set()
            self._condition.notify()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _CLOSE_S)
        if not any(thread.is_alive() for thread in self._threads):
            with contextlib.suppress(Unavailable):
                await self._on_tiles(self._log.close)
        await self._tiles.close(deadline_s=_CLOSE_S)

    # --- the threads

    def _append(self) -> None:
        while (batch := self._next()) is not None:
            index = self._commit([event for request in batch for event in request.events])
            results: list[tuple[Settled, int | None]] = []
            for request in batch:
                results.append((request.settled, index))
                if index is not None:
                    index += len(request.events)
            with self._condition:
                self._pending -= sum(len(request.events) for request in batch)
            # RuntimeError: the loop is closed, so nobody waits any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_settle, results)

    def _next(self) -> list[_Request] | None:
        with self._condition:
            while not self._queue:
                if self._stopping.is_set():
                    return None
                self._condition.wait()
            batch = [self._queue.popleft()]
            size = len(batch[0].events)
            while self._queue and size + len(self._queue[0].events) <= MAX_COMMIT_EVENTS:
                size += len(self._queue[0].events)
                batch.append(self._queue.popleft())
            return batch

    def _commit(self, events: Sequence[Event]) -> int | None:
        now = datetime.now(UTC)
        try:
            first = self._log.append(
                [partial(_rendered, event, self._log.origin, now) for event in events]
            )
        except WriteFailed as failed:
            self._problem, self._lasting = failed.what, failed.lasting
            return None
        self._problem = None
        for index, event in enumerate(events, first):
            if not _is_own_signing(event):
                self.due = index + 1
        return first

    def _integrate(self) -> None:
        while not self._stopping.wait(INTEGRATE_S):
            # Where it cannot be done it is tried again; what is durable stays so meanwhile, and
            # appends are refused before it grows without bound.
            with contextlib.suppress(WriteFailed):
                self._log.integrate()


def open_record(
    folder: Path, origin: str, *, signed: bool = False, file_system: FileSystem | None = None
) -> LogRecord:
    """Open the folder's record, or make one, mending what a crash left. signed: RecordCheckpoints
    publishes it. Raises ConfigurationError: in use, another origin's, damaged, unusable; signed
    before, and not to be now.
    """
    try:
        # The log would make it as the umask has it.
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        log = AppendLog.open(folder, origin, file_system=file_system)
        if not signed and log.checkpoint() is not None:
            log.close()
            raise ConfigurationError(
                f"record.signing_key is missing, and the record in {folder} is a signed one: name"
                " its key again, or begin a new folder and origin."
            )
        return LogRecord(log, signed=signed)
    except LogError as error:
        raise ConfigurationError(f"record: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"record.folder {folder}: {error.strerror}.") from None


def unrecorded() -> Unavailable:
    """The one refusal where the record cannot be written."""
    return Unavailable("The HSM process cannot write its record, so nothing was done.")


def _is_own_signing(event: Event) -> bool:
    """Whether the event is of a checkpoint of this record: what clients ask to be signed has a
    principal, and is an entry like any other.
    """
    return event.operation == SIGN and not event.principal


def _translate(error: Exception) -> HsmError:
    if isinstance(error, WriteFailed):
        return Unavailable(f"The HSM process' record cannot be published: {error.what}.")
    if isinstance(error, OSError | BadTile):
        return Unavailable("The HSM process' record cannot be read.")
    return Unavailable(f"The HSM process' record failed ({type(error).__name__}).")


def _rendered(event: Event, origin: str, now: datetime, index: int) -> bytes:
    return render(event, origin=origin, sequence=index, logged_time=now)


def _settle(results: Sequence[tuple[Settled, int | None]]) -> None:
    for settled, index in results:
        settled(index)
