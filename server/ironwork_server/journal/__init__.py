"""The audit log's writer and reader."""

from ironwork_server.journal.errors import (
    JournalDamaged,
    JournalError,
    JournalInUse,
    JournalUnusable,
    OriginDiffers,
)
from ironwork_server.journal.file import FileJournal
from ironwork_server.journal.reader import EntryFilter, JournalReader, Page

__all__ = [
    "EntryFilter",
    "FileJournal",
    "JournalDamaged",
    "JournalError",
    "JournalInUse",
    "JournalReader",
    "JournalUnusable",
    "OriginDiffers",
    "Page",
]
