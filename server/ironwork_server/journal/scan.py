"""Reads a whole journal file at start: checks it, and finds the state that it implies."""

from dataclasses import dataclass, field
from typing import BinaryIO, Final

from ironwork_audit import (
    INTENT,
    MAX_ENTRY_BYTES,
    OUTCOME,
    NotAnEvent,
    Summary,
    WrongHeader,
    parse_header,
    summarize,
)
from ironwork_audit.file_format import MAX_HEADER_BYTES
from ironwork_server.journal.errors import JournalDamaged, OriginDiffers
from ironwork_server.journal.extent import Extent

# One commit is at most this long, so no more than this can be there without having been synced.
MAX_COMMIT_BYTES: Final = 1 << 20

UNFINISHED: Final = "journal.unfinished"
DELETE_KEY: Final = "DeleteKey"
# The row is gone although DeleteKey failed: its bytes are still in the store's files.
KEY_DELETED: Final = "key.deleted"


@dataclass(slots=True)
class Scanned:
    """What a journal file holds. torn_bytes: what a crash left after the last whole entry.
    deleted: (workspace, key id). unfinished: indexes of intents without an outcome, growing.
    """

    extent: Extent
    torn_bytes: int = 0
    deleted: set[tuple[str, str]] = field(default_factory=set)
    unfinished: dict[int, None] = field(default_factory=dict)

    def take(self, entry: Summary) -> None:
        """Add what this entry says."""
        if is_deletion(entry.phase, entry.operation, success=entry.success):
            self.deleted.add((entry.workspace, entry.key_id))
        if entry.phase == INTENT:
            self.unfinished[entry.sequence] = None
        elif entry.phase == OUTCOME and entry.intent_index is not None:
            self.unfinished.pop(entry.intent_index, None)
        elif entry.operation == UNFINISHED:
            # Written at a start, when no call is under way: it accounts for all before it.
            self.unfinished.clear()


def is_deletion(phase: str, operation: str, *, success: bool | None) -> bool:
    """Whether an entry says that its key is gone for good."""
    ended = operation == DELETE_KEY and phase == OUTCOME
    return bool(success) and (ended or operation == KEY_DELETED)


def scan(file: BinaryIO, origin: str) -> Scanned:
    """Read from the start. Raises OriginDiffers, JournalDamaged, OSError."""
    header = file.readline(MAX_HEADER_BYTES)
    try:
        stored = parse_header(header)
    except WrongHeader as wrong:
        raise JournalDamaged(1, str(wrong)) from None
    if stored != origin:
        raise OriginDiffers(
            f"this journal belongs to the origin {stored!r}, not {origin!r}: "
            "give each process a folder of its own, or set the origin back"
        )
    scanned = Scanned(Extent(len(header)))
    while line := file.readline(MAX_ENTRY_BYTES + 1):
        index, _ = scanned.extent.end
        try:
            entry = _entry(line)
        except NotAnEvent as damage:
            scanned.torn_bytes = _torn(file, line, index + 2, damage)
            break
        if entry.sequence != index or entry.origin != origin:
            raise JournalDamaged(index + 2, "an entry is missing, or not of this log")
        scanned.take(entry)
        scanned.extent.advance((len(line),))
    return scanned


def _entry(line: bytes) -> Summary:
    if not line.endswith(b"\n"):
        raise NotAnEvent("entry: not whole")
    return summarize(line[:-1])


def _torn(file: BinaryIO, line: bytes, number: int, damage: NotAnEvent) -> int:
    """How many bytes a crash left, where that is what it is: a last line without its line feed,
    or one with zeros, from file systems that grow a file before they fill it. A last line that is
    whole and no entry was changed by something else, and may have been acknowledged.
    """
    rest = file.read(MAX_COMMIT_BYTES)
    torn = len(line) + len(rest)
    crashed = not line.endswith(b"\n") or b"\0" in line
    if not crashed or rest.strip(b"\0") or torn > MAX_COMMIT_BYTES:
        raise JournalDamaged(number, str(damage))
    return torn
