"""What can be wrong with a store, and the one seam that turns the libraries' errors into it.

core.errors.Unavailable, reason STORE_UNAVAILABLE (StoreUndecided: STORE_UNDECIDED)
├── StoreBusy        another process holds the lock, or the deadline has passed
├── StoreFull        the disk, or the database's own bound, is full
├── StoreReadOnly    the file or its folder cannot be written
├── StoreMissing     the file was deleted, moved or replaced, or cannot be opened
├── StoreFailed      the device or the driver reported anything else
├── StoreUndecided   a write that had begun did not end in time, or the device failed in it
└── TraceRemains     what was deleted is not yet out of the store's files
core.errors.Unavailable, reason MASTER_KEY_VERSION_RETIRED
└── VersionRetired   nothing may be wrapped by this version any more
core.errors.DataLoss, reason STORE_CORRUPT
└── StoreCorrupt     what is in the file is no database, or a damaged one
core.errors.PreconditionFailed
├── StoreRefused     at opening: see its reasons
└── StoreConflict    reason STORE_CONFLICT: a key id or a sequence number was used before
core.errors.InvalidRequest, reason VALUE_NOT_STORABLE

A library's text never passes: it could quote a parameter. Decided on SQLite's result codes
(https://www.sqlite.org/rescode.html) and on types.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ironwork_server.core.errors import (
    DataLoss,
    InvalidRequest,
    IronworkError,
    PreconditionFailed,
    Unavailable,
)

REASON_UNAVAILABLE = "STORE_UNAVAILABLE"
REASON_UNDECIDED = "STORE_UNDECIDED"
REASON_CORRUPT = "STORE_CORRUPT"


class StoreUnavailable(Unavailable):
    """Base of the store's errors that are worth another try; text says what to mend."""

    text = "The key store does not answer."
    why = REASON_UNAVAILABLE

    def __init__(self) -> None:
        super().__init__(self.text, reason=self.why, retry_after_s=1.0)


class StoreBusy(StoreUnavailable):
    text = "The key store did not answer within its deadline: it is locked or overloaded."


class StoreFull(StoreUnavailable):
    text = "The key store is full: free space on its disk."


class StoreReadOnly(StoreUnavailable):
    text = "The key store cannot be written: mend the permissions of its file and folder."


class StoreMissing(StoreUnavailable):
    text = "The key store's file is gone or was replaced: put it back, or restart the service."


class StoreFailed(StoreUnavailable):
    text = "The key store failed: look at the health of its disk."


class StoreUndecided(StoreUnavailable):
    text = (
        "The key store did not say whether the write was done. The audit log will tell; list the"
        " keys, or repeat the call with its request_id."
    )
    why = REASON_UNDECIDED


class TraceRemains(StoreUnavailable):
    text = (
        "What was deleted is not out of the database's files yet, since a reader holds it or the"
        " disk is full: repeat the deletion."
    )


class VersionRetired(Unavailable):
    """The process that wrapped had read which version to use before that one was retired."""

    def __init__(self) -> None:
        super().__init__(
            "The master-key version that this was wrapped with has just been retired; try again.",
            reason="MASTER_KEY_VERSION_RETIRED",
            retry_after_s=1.0,
        )


class StoreCorrupt(DataLoss):
    def __init__(self) -> None:
        super().__init__(
            "The key store is damaged or is no Ironwork database: restore it from a backup.",
            reason=REASON_CORRUPT,
        )


class StoreRefused(PreconditionFailed):
    """The store is not opened. Reasons: STORE_URL_INVALID, STORE_NOT_INITIALISED,
    STORE_NEEDS_UPGRADE, STORE_IS_NEWER, STORE_IS_FOREIGN, STORE_UNSUITABLE, STORE_MARKED.
    """


class StoreConflict(PreconditionFailed):
    def __init__(self) -> None:
        super().__init__("This key id or sequence number was used before.", reason="STORE_CONFLICT")


# SQLite's primary result codes; the extended ones refine them in the upper bytes.
_BY_CODE: dict[int, type[StoreUnavailable | StoreCorrupt | StoreConflict]] = {
    sqlite3.SQLITE_BUSY: StoreBusy,
    sqlite3.SQLITE_LOCKED: StoreBusy,
    # Only our own deadline interrupts a statement.
    sqlite3.SQLITE_INTERRUPT: StoreBusy,
    sqlite3.SQLITE_FULL: StoreFull,
    sqlite3.SQLITE_READONLY: StoreReadOnly,
    sqlite3.SQLITE_PERM: StoreReadOnly,
    sqlite3.SQLITE_CANTOPEN: StoreMissing,
    sqlite3.SQLITE_CORRUPT: StoreCorrupt,
    sqlite3.SQLITE_NOTADB: StoreCorrupt,
    sqlite3.SQLITE_CONSTRAINT: StoreConflict,
}

# What the driver and SQLAlchemy raise; the last two where a value does not fit SQLite's types.
FOREIGN = (sqlite3.Error, SQLAlchemyError, UnicodeEncodeError, OverflowError)


def translate(error: BaseException) -> IronworkError:
    """Our error for one of FOREIGN. Raise it `from None`."""
    if isinstance(error, DBAPIError):
        error = error.orig or error
    if isinstance(error, (UnicodeEncodeError, OverflowError)):
        return InvalidRequest(
            "A value cannot be stored: texts are valid Unicode, numbers have at most 64 bits.",
            reason="VALUE_NOT_STORABLE",
        )
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return StoreMissing()
    return _BY_CODE.get((code or 0) & 0xFF, StoreFailed)()


def _translate_os(error: OSError) -> IronworkError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return StoreMissing()
    if isinstance(error, PermissionError):
        return StoreReadOnly()
    return StoreFailed()


@contextmanager
def seam() -> Iterator[None]:
    """Every call of a library runs inside this: its errors leave as ours, without their text."""
    try:
        yield
    except FOREIGN as error:
        raise translate(error) from None


@contextmanager
def file_seam() -> Iterator[None]:
    """The same for the file system's errors, around our own handling of the files."""
    try:
        yield
    except OSError as error:
        raise _translate_os(error) from None
