"""Where sealed keys are kept: SQLite behind core.ports.KeyStore. See docs/adr/0004."""

from ironwork_server.store.errors import (
    REASON_UNDECIDED,
    StoreBusy,
    StoreConflict,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StoreMissing,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
    StoreUndecided,
    TraceRemains,
    VersionRetired,
)
from ironwork_server.store.ids import KeyId, key_ids
from ironwork_server.store.interface import DEV, Store
from ironwork_server.store.migrate import (
    MigrationStatus,
    mark,
    marker,
    newest_head,
    status,
    upgrade,
)
from ironwork_server.store.sqlite import Deadlines, open_sqlite
from ironwork_server.store.urls import sqlite_path

__all__ = [
    "DEV",
    "REASON_UNDECIDED",
    "Deadlines",
    "KeyId",
    "MigrationStatus",
    "Store",
    "StoreBusy",
    "StoreConflict",
    "StoreCorrupt",
    "StoreFailed",
    "StoreFull",
    "StoreMissing",
    "StoreReadOnly",
    "StoreRefused",
    "StoreUnavailable",
    "StoreUndecided",
    "TraceRemains",
    "VersionRetired",
    "key_ids",
    "mark",
    "marker",
    "newest_head",
    "open_sqlite",
    "open_store",
    "sqlite_path",
    "status",
    "upgrade",
]


def open_store(url: str, *, deadlines: Deadlines | None = None) -> Store:
    """Open the store at `sqlite:///path`. It must be migrated (`upgrade`). Blocks shortly.

    Raises StoreRefused (its reason and text say why, and never repeat the URL), StoreUnavailable,
    StoreCorrupt.
    """
    return open_sqlite(sqlite_path(url), deadlines=deadlines)
