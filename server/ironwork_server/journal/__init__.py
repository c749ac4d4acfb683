"""The audit log's writer and reader."""

from ironwork_audit.log import LogDamaged as JournalDamaged
from ironwork_audit.log import LogError as JournalError
from ironwork_audit.log import LogInUse as JournalInUse
from ironwork_audit.log import LogUnusable as JournalUnusable
from ironwork_audit.log import OriginDiffers
from ironwork_server.journal.file import FileJournal
from ironwork_server.journal.reader import EntryFilter, JournalReader, Page
from ironwork_server.journal.witnesses import Witnesses

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
    "Witnesses",
]
