"""Reads the journal's durable entries, page by page, while it is being written."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from ironwork_audit import NotAnEvent, summarize
from ironwork_audit.event import to_timestamp
from ironwork_audit.log import AppendLog
from ironwork_audit.tlog import (
    BadTile,
    Checkpoint,
    consistency_proof,
    inclusion_proof,
    parse_note,
)
from ironwork_server.core.errors import DataLoss, OutOfRange, Unavailable
from ironwork_server.journal.aside import on_a_thread

T = TypeVar("T")

MAX_LIMIT: Final = 1000
# Bounds of one page: how many entries are looked at, and how many bytes are returned (an answer
# stays below gRPC's 4 MiB).
MAX_SCANNED: Final = 20_000
MAX_PAGE_BYTES: Final = 1 << 20

_DEADLINE_S: Final = 10.0
_CONCURRENT: Final = 2


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries; what is empty or None matches all. start_time is inclusive, end_time is not;
    both are aware.
    """

    workspace: str = ""
    key_id: str = ""
    principal: str = ""
    operation: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries with their indexes, oldest first. next_index: give it as after_index to go on; None
    where everything durable has been looked at. A page may be empty and not the last.
    """

    entries: Sequence[tuple[int, bytes]]
    next_index: int | None


class JournalReader:
    """Made by FileJournal.reader()."""

    def __init__(self, log: AppendLog) -> None:
        self._log = log
        self._slots = asyncio.Semaphore(_CONCURRENT)

    async def page(
        self,
        *,
        after_index: int,
        limit: int,
        filter: EntryFilter,  # noqa: A002 - the word that everybody looks for
    ) -> Page:
        """At most limit (1 to 1000) entries with an index above after_index; -1 is the start.

        Raises Unavailable (AUDIT_UNAVAILABLE) where the file cannot be read, OutOfRange
        (AUDIT_PRUNED, metadata first_index) where it was moved to an archive, DataLoss
        (AUDIT_DAMAGED) where an entry is not what was written.
        """
        if not 1 <= limit <= MAX_LIMIT or after_index < -1:
            raise ValueError("limit must be 1 to 1000, after_index at least -1")
        if after_index + 1 >= self._log.size:
            return Page((), None)  # without a thread: each follower asks so several times a second
        matcher = _Matcher(filter)
        start = after_index + 1
        return await self._kept(lambda: self._read(start, limit, matcher), start, None)

    @property
    def size(self) -> int:
        """How many entries are durable."""
        return self._log.size

    async def checkpoint(self) -> tuple[bytes, int]:
        """The published checkpoint, and the size that it is for. Raises as page does, and
        Unavailable (CHECKPOINT_UNAVAILABLE) before the first.
        """
        note = await self._apart(self._log.checkpoint)
        if note is None:
            raise Unavailable(
                "No checkpoint was published yet. Try again later.",
                reason="CHECKPOINT_UNAVAILABLE",
                retry_after_s=1.0,
            )
        return note, Checkpoint.parse(parse_note(note).text).size

    async def inclusion(self, index: int, size: int) -> Sequence[bytes]:
        """The proof that entry index is in the tree of size entries, which are in tiles. Raises as
        page does.
        """
        return await self._kept(
            lambda: inclusion_proof(index, size, self._log.hashes(size)), index, 0
        )

    async def consistency(self, old_size: int, size: int) -> Sequence[bytes]:
        """The proof that the tree of size has grown from that of old_size. Raises likewise."""
        return await self._kept(
            lambda: consistency_proof(old_size, size, self._log.hashes(size)), old_size - 1, 0
        )

    async def _kept(self, work: Callable[[], T], index: int, level: int | None) -> T:
        """As _apart. Where a file is missing, and the entry of this index was pruned, that is what
        it says: no other try would help.
        """

        def kept() -> T:
            try:
                return work()
            except FileNotFoundError:
                first = self._log.first_kept(level)
                if index >= first:
                    raise
                raise OutOfRange(
                    f"The audit log holds entries from index {first} on; those before were moved to"
                    " its archive. Read them there, or begin at that index.",
                    reason="AUDIT_PRUNED",
                    metadata={"first_index": str(first)},
                ) from None

        return await self._apart(kept)

    async def _apart(self, work: Callable[[], T]) -> T:
        """On a thread, bounded in time and number, with errors mapped."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await self._slots.acquire()
                return await on_a_thread(work, name="audit-reader", ended=self._give_back())
        except (OSError, TimeoutError):
            raise Unavailable(
                "The audit log cannot be read now. Try again later.",
                reason="AUDIT_UNAVAILABLE",
                retry_after_s=1.0,
            ) from None
        except (NotAnEvent, BadTile):
            raise DataLoss(
                "An entry of the audit log is damaged.", reason="AUDIT_DAMAGED"
            ) from None

    def _give_back(self) -> Callable[[], None]:
        """For the thread's end, not its caller's: a disk that hangs holds two threads and no more,
        whoever asks again.
        """
        loop = asyncio.get_running_loop()

        def give_back() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._slots.release)

        return give_back

    def _read(self, start: int, limit: int, matcher: "_Matcher") -> Page:
        count = self._log.size
        entries: list[tuple[int, bytes]] = []
        size = 0
        index, last = start, min(count, start + MAX_SCANNED)
        while index < last and len(entries) < limit and size < MAX_PAGE_BYTES:
            for entry in self._log.read(index, last - index):
                index += 1
                if matcher.matches(entry):
                    entries.append((index - 1, entry))
                    size += len(entry)
                    if len(entries) >= limit or size >= MAX_PAGE_BYTES:
                        break
        return Page(entries, index - 1 if index < count else None)


class _Matcher:
    """A filter made ready: an entry is parsed only where all the wanted strings occur in it."""

    def __init__(self, wanted: EntryFilter) -> None:
        self._wanted = wanted
        values = (wanted.workspace, wanted.key_id, wanted.principal, wanted.operation)
        self._needles = [
            json.dumps(value, ensure_ascii=False).encode(errors="replace")
            for value in values
            if value
        ]
        self._start = None if wanted.start_time is None else _ceiling(wanted.start_time)
        self._end = None if wanted.end_time is None else _ceiling(wanted.end_time)

    def matches(self, entry: bytes) -> bool:
        """Raises NotAnEvent for an entry that must be parsed and cannot be."""
        # A loop: a generator for each of a million entries takes as long as the search itself.
        for needle in self._needles:
            if needle not in entry:
                return False
        if not self._needles and self._start is None and self._end is None:
            return True
        found, wanted = summarize(entry), self._wanted
        return (
            wanted.workspace in {"", found.workspace}
            and wanted.key_id in {"", found.key_id}
            and wanted.principal in {"", found.principal}
            and wanted.operation in {"", found.operation}
            and (self._start is None or found.time_ms >= self._start)
            and (self._end is None or found.time_ms < self._end)
        )


def _ceiling(time: datetime) -> int:
    """Milliseconds, rounded up: entries hold whole milliseconds."""
    cut = to_timestamp(time)
    return cut if time.microsecond % 1000 == 0 else cut + 1
