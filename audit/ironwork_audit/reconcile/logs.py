"""Reads whole logs, up to their last durable entry where their folder is at hand."""

from collections.abc import Iterator
from contextlib import closing

from ironwork_audit.log.snapshot import STATE
from ironwork_audit.select import BadEntry, of_our_form, stored, unchecked_size
from ironwork_audit.source import FolderSource, NotThere, Source, open_source
from ironwork_audit.verify import Progress
from ironwork_audit.verify_chunk import Found
from ironwork_audit.verify_unsigned import unsigned_entries

_PROGRESS_EVERY = 4096


def entries_of(place: str, progress: Progress) -> Iterator[tuple[int, bytes]]:
    """Every entry by index. Of a folder, also those after its checkpoint: the signature of the
    last checkpoint is itself on record there. Their form is checked, hashes are not. Raises
    BadEntry, Unreadable.
    """
    return of_our_form(_entries_of(place, progress))


def _entries_of(place: str, progress: Progress) -> Iterator[tuple[int, bytes]]:
    with closing(open_source(place)) as source:
        size = _size(source)
        for index, entry in stored(source, 0, size):
            if index % _PROGRESS_EVERY == 0:
                progress(index, size)
            yield index, entry
        if isinstance(source, FolderSource):
            yield from _unsigned(source, size)


def is_open_ended(place: str) -> bool:
    """Whether what is read of it ends at its checkpoint, before the last durable entry."""
    return place.startswith(("http://", "https://"))


def _size(source: Source) -> int:
    try:
        return unchecked_size(source)
    except NotThere:
        # A log that nobody signs (the HSM process's may be one) has entries all the same.
        if isinstance(source, FolderSource) and (source.folder / STATE).is_file():
            return 0
        raise


def _unsigned(source: FolderSource, size: int) -> Iterator[tuple[int, bytes]]:
    try:
        yield from unsigned_entries(source, size)
    except Found as found:
        place = "" if found.finding.index is None else f"entry {found.finding.index}: "
        raise BadEntry(f"{place}{found.finding.what}") from None
