"""Bringing a store's schema up to date, and looking at it. Blocking: for commands and start-up.

Alembic does the work; its scripts lie in migrations/ inside this package and need no ini file. A
migration happens whole or not at all (SQLite's DDL is transactional), and two at once wait for
each other.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from ironwork_server.core.values import LogHead
from ironwork_server.store import heads, transactions
from ironwork_server.store.connection import (
    DatabaseFile,
    Session,
    create_private,
    make_private,
)
from ironwork_server.store.errors import StoreCorrupt, StoreRefused, file_seam, seam
from ironwork_server.store.interface import DEV
from ironwork_server.store.urls import sqlite_path

# How long a migration waits for another process's transaction, in seconds.
_LOCK_WAIT = 30.0


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """current: the store's revision, None where it has none (or there is no file). head: this
    version's. pending: the revisions between, in the order in which they will run.
    """

    current: str | None
    head: str
    pending: tuple[str, ...]


def upgrade(url: str) -> MigrationStatus:
    """Migrate the store to this version's schema, making it where there is none; returns what it
    is then. Raises StoreRefused (STORE_URL_INVALID, STORE_IS_NEWER, STORE_IS_FOREIGN,
    STORE_UNSUITABLE), StoreUnavailable, StoreCorrupt.
    """
    path = sqlite_path(url)
    create_private(path)
    make_private(path)
    deadline = time.monotonic() + _LOCK_WAIT
    with seam(), _session(path, deadline) as session:
        session.use_wal(deadline)
        with session.transaction(deadline) as connection:
            if _status(connection).pending:
                _refuse_foreign(connection)
                config = _config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
    return status(url)


def status(url: str) -> MigrationStatus:
    """Where the store stands. Changes nothing and makes no file. Raises StoreRefused
    (STORE_URL_INVALID, STORE_IS_NEWER), StoreUnavailable, StoreCorrupt.
    """
    return _status_at(sqlite_path(url), _LOCK_WAIT)


def marker(url: str) -> str:
    """'' or 'dev'. Raises as require_head does."""
    path = sqlite_path(url)
    require_head(path)
    with _transaction(path, _LOCK_WAIT, begin="BEGIN") as connection:
        return transactions.meta_value(connection, "marker")


def newest_head(url: str, origin: str) -> LogHead | None:
    """The newest head of this log, for whoever only looks. Raises as require_head does."""
    path = sqlite_path(url)
    require_head(path)
    with _transaction(path, _LOCK_WAIT, begin="BEGIN") as connection:
        return heads.log_head(connection, origin)


def mark(url: str, value: str) -> None:
    """Mark a store 'dev', for good: `serve` refuses it then. Raises StoreRefused (STORE_MARKED)
    for any other value, and as require_head does.
    """
    if value != DEV:
        raise StoreRefused(
            "A store is marked 'dev' or not at all, and a mark stays.", reason="STORE_MARKED"
        )
    path = sqlite_path(url)
    require_head(path)
    with _transaction(path, _LOCK_WAIT) as connection:
        transactions.set_meta(connection, "marker", value)


def require_head(path: Path, wait: float = _LOCK_WAIT) -> None:
    """Raises StoreRefused unless the store in the file at path has this version's schema
    (STORE_NOT_INITIALISED, STORE_NEEDS_UPGRADE, STORE_IS_NEWER); StoreUnavailable, StoreCorrupt.
    wait: seconds for a lock.
    """
    found = _status_at(path, wait)
    if found.current is None:
        raise StoreRefused(
            "There is no key store at the configured place: run `ironwork-server db upgrade` to"
            " make one, or mend the setting.",
            reason="STORE_NOT_INITIALISED",
        )
    if found.pending:
        raise StoreRefused(
            f"The key store's schema is at {found.current}, this version needs {found.head}: run"
            " `ironwork-server db upgrade`.",
            reason="STORE_NEEDS_UPGRADE",
        )


def _status_at(path: Path, wait: float) -> MigrationStatus:
    with file_seam():
        # An empty file is what a migration that never began leaves behind.
        if not path.exists() or path.stat().st_size == 0:
            return _compare(None)
    with _transaction(path, wait, begin="BEGIN") as connection:
        return _status(connection)


def _status(connection: sa.Connection) -> MigrationStatus:
    heads = MigrationContext.configure(connection).get_current_heads()
    if len(heads) > 1:
        raise StoreCorrupt
    return _compare(heads[0] if heads else None)


def _compare(current: str | None) -> MigrationStatus:
    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    if head is None:
        raise RuntimeError("this installation lacks its migrations: install it again")
    order = [script.revision for script in scripts.walk_revisions()][::-1]
    if current is not None and current not in order:
        raise StoreRefused(
            "The key store was made by a newer version of ironwork-server: install that version.",
            reason="STORE_IS_NEWER",
        )
    done = 0 if current is None else order.index(current) + 1
    return MigrationStatus(current, head, tuple(order[done:]))


def _refuse_foreign(connection: sa.Connection) -> None:
    if MigrationContext.configure(connection).get_current_heads():
        return
    if sa.inspect(connection).get_table_names():
        raise StoreRefused(
            "The configured file is a database of something else; it was left as it is.",
            reason="STORE_IS_FOREIGN",
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "ironwork_server.store:migrations")
    return config


@contextmanager
def _session(path: Path, deadline: float, begin: str = "BEGIN IMMEDIATE") -> Iterator[Session]:
    session = Session(DatabaseFile(path), deadline, begin=begin)
    try:
        yield session
    finally:
        session.close()


@contextmanager
def _transaction(
    path: Path, wait: float, begin: str = "BEGIN IMMEDIATE"
) -> Iterator[sa.Connection]:
    deadline = time.monotonic() + wait
    with (
        seam(),
        _session(path, deadline, begin) as session,
        session.transaction(deadline) as connection,
    ):
        yield connection
