"""Reading a log's entries in order, and choosing among them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ironwork_audit.parse import NotAnEvent, Summary, summarize
from ironwork_audit.source import NotThere, Source, read_checkpoint, read_entries
from ironwork_audit.tlog.checkpoint import Checkpoint
from ironwork_audit.tlog.note import parse_note
from ironwork_audit.tlog.tiles import TILE_WIDTH, BadTile, tile_at
from ironwork_audit.verify_entry import EntryChecker


class BadEntry(Exception):
    """An entry that is not one. The text names it, and is fit to be shown."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What an entry must have; an empty field asks for nothing. Times in milliseconds since 1970:
    from start_ms on, before end_ms.
    """

    workspace: str = ""
    key_id: str = ""
    principal: str = ""
    operation: str = ""
    start_ms: int | None = None
    end_ms: int | None = None

    def takes(self, entry: Summary) -> bool:
        """Whether the entry has it all."""
        return (
            self.workspace in {"", entry.workspace}
            and self.key_id in {"", entry.key_id}
            and self.principal in {"", entry.principal}
            and self.operation in {"", entry.operation}
            and (self.start_ms is None or entry.time_ms >= self.start_ms)
            and (self.end_ms is None or entry.time_ms < self.end_ms)
        )


def unchecked_size(source: Source) -> int:
    """How many entries the checkpoint tells of; its signature is not looked at. Raises Unreadable,
    BadNote.
    """
    return _unchecked(source).size


def unchecked_origin(source: Source) -> str:
    """Whose log it says it is. Raises Unreadable, BadNote."""
    return _unchecked(source).origin


def _unchecked(source: Source) -> Checkpoint:
    return Checkpoint.parse(parse_note(read_checkpoint(source)).text)


def stored(source: Source, start: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The entries from index `start` on, of a log of `size`. Raises BadEntry, Unreadable."""
    for bundle in range(start // TILE_WIDTH, -(-size // TILE_WIDTH)):
        first = bundle * TILE_WIDTH
        try:
            entries = read_entries(source, tile_at(0, bundle, size).bundle)
        except (NotThere, BadTile) as error:
            raise BadEntry(f"entry {first}: {error}") from None
        for index, entry in enumerate(entries, first):
            if index >= start:
                yield index, entry


def of_our_form(entries: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The entries of one log, each held to all that its form asks for: what is read out of them, to
    be shown or handed on, is then within its bounds and plays no tricks on who reads it. Whether
    they are what was signed is not looked at. Raises BadEntry, and what entries raises.
    """
    checker: EntryChecker | None = None
    for index, entry in entries:
        try:
            checker = checker or EntryChecker(summarize(entry).origin)
            checker.check(entry, index)
        except NotAnEvent as refused:
            raise BadEntry(f"entry {index}: {refused}") from None
        yield index, entry


def summary_of(index: int, entry: bytes) -> Summary:
    """What a selection looks at. Raises BadEntry."""
    if b"\n" in entry or b"\r" in entry:
        raise BadEntry(f"entry {index}: holds a line end")
    try:
        return summarize(entry)
    except NotAnEvent as refused:
        raise BadEntry(f"entry {index}: {refused}") from None
