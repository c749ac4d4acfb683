"""Which keys a store holds, without anything of them: for holding it against the audit log."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from ironwork_server.store.connection import DatabaseFile, Session
from ironwork_server.store.errors import seam
from ironwork_server.store.migrate import require_head
from ironwork_server.store.rows import moment
from ironwork_server.store.schema import keys
from ironwork_server.store.urls import sqlite_path

# How long it waits for another process's transaction, in seconds.
_LOCK_WAIT = 30.0


class KeyId(NamedTuple):
    """A row by its names. created_at: UTC."""

    workspace: str
    key_id: str
    sequence: int
    created_at: datetime
    state: str


def key_ids(url: str) -> Sequence[KeyId]:
    """Every row of the store, in the order in which they were added, as of one moment. Reads no
    ciphertext. Raises StoreRefused, StoreUnavailable, StoreCorrupt.
    """
    path = sqlite_path(url)
    require_head(path)
    columns = (keys.c.workspace, keys.c.key_id, keys.c.sequence, keys.c.created_at, keys.c.state)
    deadline = time.monotonic() + _LOCK_WAIT
    with seam():
        session = Session(DatabaseFile(path), deadline, begin="BEGIN")
        try:
            with session.transaction(deadline) as connection:
                rows = connection.execute(sa.select(*columns).order_by(keys.c.sequence)).all()
        finally:
            session.close()
    return [KeyId(row[0], row[1], row[2], moment(row[3]), row[4]) for row in rows]
