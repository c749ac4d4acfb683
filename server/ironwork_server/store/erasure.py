"""Erasing what was deleted, or replaced for good, from SQLite's files.

secure_delete overwrites a freed cell, but not the copies of it that SQLite left behind when it
moved cells between pages while the row was alive: about one deletion in two hundred left whole
ciphertexts (docs/adr/0004). So after a deletion the file is rebuilt from its live rows (VACUUM)
and the log of page images is emptied (a truncating checkpoint).

That cannot be part of the deletion's transaction. Two counters span the gap: `deleted` grows in
that transaction, `erased` follows when its trace is gone; where they differ, erasing is owed, over
crashes and by whichever process comes first.
"""

import sqlite3
import time

from ironwork_server.store.connection import Session
from ironwork_server.store.counters import counter, set_counter
from ironwork_server.store.errors import StoreBusy, StoreUnavailable, TraceRemains, seam

# How many of SQLite's steps pass between two looks at the clock: well under a millisecond.
_STEPS = 10_000
# How long one try waits for readers of older pages, in seconds; there are tries until the deadline.
_TRY = 0.2


def erase(session: Session, deadline: float) -> None:
    """Erase what is owed, if anything. Raises TraceRemains where that did not end by deadline
    (time.monotonic()); it is owed still. Safe in several processes at once.
    """
    try:
        with seam():
            _erase(session, deadline)
    except StoreUnavailable:
        raise TraceRemains from None


def _erase(session: Session, deadline: float) -> None:
    with session.transaction(deadline) as connection:
        deleted = counter(connection, "deleted")
        if deleted == counter(connection, "erased"):
            return
    # First as well: where a reader is in the way, no try makes the log longer by a whole file.
    _empty_log(session.raw, deadline)
    _rebuild(session, deadline)
    _empty_log(session.raw, deadline)
    with session.transaction(deadline) as connection:
        # Another process may have erased a later deletion meanwhile.
        if counter(connection, "erased") < deleted:
            set_counter(connection, "erased", deleted)


def _rebuild(session: Session, deadline: float) -> None:
    session.wait_for_locks(deadline)
    session.raw.set_progress_handler(lambda: time.monotonic() >= deadline, _STEPS)
    try:
        session.raw.execute("VACUUM")
    finally:
        session.raw.set_progress_handler(None, 0)


def _empty_log(raw: sqlite3.Connection, deadline: float) -> None:
    """A checkpoint ends once no reader is on an older page. New readers start on the new ones."""
    raw.execute(f"PRAGMA busy_timeout={int(_TRY * 1000)}")
    while True:
        busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return
        if time.monotonic() >= deadline:
            raise StoreBusy
