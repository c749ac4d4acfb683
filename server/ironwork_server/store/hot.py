"""The hot read: once for each Claude request, on the event loop's own thread.

Handing it to another thread costs ten times as much as the read itself (docs/adr/0004). It never
waits: readers of a WAL file take no lock that a writer holds, and where SQLite says BUSY all the
same (another process recovers the log), the caller goes the long way.
"""

import contextlib
import sqlite3

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from ironwork_server.core.values import StoredKey
from ironwork_server.store.connection import DatabaseFile
from ironwork_server.store.errors import FOREIGN, translate
from ironwork_server.store.rows import stored_key
from ironwork_server.store.transactions import current_key

_STATEMENT = str(current_key(sa.bindparam("workspace")).compile(dialect=sqlite.dialect()))


class HotRead:
    """One connection, opened by the first read and again after an error. Used by one thread."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def current(self, workspace: str) -> StoredKey | None:
        """The workspace's newest row. Raises StoreBusy at once where it would have to wait."""
        try:
            self._file.verify()
            connection = self._connection or self._connect()
            # The driver keeps the prepared statement. fetchall, since a statement that was not
            # read to its end would hold its old view of the file.
            rows = connection.execute(_STATEMENT, (workspace,)).fetchall()
        except FOREIGN as error:
            self.close()
            raise translate(error) from None
        return stored_key(rows[0]) if rows else None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _connect(self) -> sqlite3.Connection:
        self._connection = self._file.connect(busy_timeout=0, read_only=True)
        return self._connection
