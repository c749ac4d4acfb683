"""One SQLite file and the connections to it: how they are opened, and what is checked.

The pragmas: WAL, so that readers never wait for the writer; synchronous=FULL, so that what was
acknowledged survives a power cut; secure_delete, so that freed bytes are overwritten (erasure.py
does the rest); temporary tables in memory, so that no row is written elsewhere.
"""

import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from ironwork_server.store.errors import StoreMissing, StoreRefused, file_seam

# SQLite keeps these beside the file, with the file's own permissions.
SIDE_FILES = ("-wal", "-shm")
_PRIVATE = stat.S_IRUSR | stat.S_IWUSR
# SQLAlchemy logs statements at INFO and whole rows at DEBUG; this store's loggers stay silent.
_LOGGER = "ironwork-store"
logging.getLogger(f"sqlalchemy.engine.Engine.{_LOGGER}").setLevel(logging.WARNING)

_PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",
    "PRAGMA foreign_keys=ON",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
)


class DatabaseFile:
    """The file at path, as it was when this was made: another file in its place is refused."""

    def __init__(self, path: Path) -> None:
        """Raises StoreMissing where there is none."""
        self.path = path.absolute()
        self._name = str(self.path)
        with file_seam():
            self._identity = self._look()

    def verify(self) -> None:
        """Raises StoreMissing where the file was deleted, moved or replaced; SQLite itself would
        go on with what is no longer there.
        """
        try:
            unchanged = self._look() == self._identity
        except OSError:
            raise StoreMissing from None
        if not unchanged:
            raise StoreMissing

    def connect(self, *, busy_timeout: float, read_only: bool) -> sqlite3.Connection:
        """A connection in autocommit, usable by any thread. Never creates the file. busy_timeout
        in seconds. Raises sqlite3.Error, StoreMissing.
        """
        self.verify()
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            if read_only:
                connection.execute("PRAGMA query_only=ON")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _look(self) -> tuple[int, int]:
        found = os.stat(self._name)  # noqa: PTH116 - on the hot path, three times as fast
        return found.st_dev, found.st_ino


class Session:
    """A connection as SQLAlchemy sees it; one thread uses it."""

    def __init__(
        self, file: DatabaseFile, deadline: float, *, begin: str, read_only: bool = False
    ) -> None:
        """begin: how transactions begin, such as BEGIN IMMEDIATE. Waits for locks (a process that
        closes its last connection holds one) until deadline (time.monotonic()).
        """
        self.file = file
        wait = max(0.0, deadline - time.monotonic())
        self.raw = file.connect(busy_timeout=wait, read_only=read_only)
        self._engine = engine_over(lambda: self.raw, begin=begin)
        self._core = self._engine.connect()

    @contextmanager
    def transaction(self, deadline: float) -> Iterator[sa.Connection]:
        """One transaction, ended when this is left: committed, or rolled back by any exception.
        Waits for a lock until deadline (time.monotonic()).
        """
        self.file.verify()
        self.wait_for_locks(deadline)
        with self._core.begin():
            yield self._core

    def wait_for_locks(self, deadline: float) -> None:
        milliseconds = max(0, int((deadline - time.monotonic()) * 1000))
        self.raw.execute(f"PRAGMA busy_timeout={milliseconds}")

    def use_wal(self, deadline: float) -> None:
        """Make sure of the mode; it stays in the file. Raises StoreRefused (STORE_UNSUITABLE)."""
        self.wait_for_locks(deadline)
        (mode,) = self.raw.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise StoreRefused(
                "SQLite cannot keep a write-ahead log there: use a local file system.",
                reason="STORE_UNSUITABLE",
            )

    def close(self) -> None:
        self._core.close()
        self._engine.dispose()
        self.raw.close()


def engine_over(connect: Callable[[], sqlite3.Connection], *, begin: str) -> sa.Engine:
    """An engine on connections in autocommit, whose transactions begin with `begin`. Its errors
    and logs hold no parameters.
    """
    engine = sa.create_engine(
        "sqlite://",
        creator=connect,
        poolclass=NullPool,
        hide_parameters=True,
        logging_name=_LOGGER,
    )
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def create_private(path: Path) -> None:
    """Make an empty file that only its owner can read; one that is there stays. Raises
    StoreUnavailable, and StoreRefused where there is no folder for it.
    """
    if not path.parent.is_dir():
        raise StoreRefused(
            f"The store's folder {path.parent} does not exist: make it, or mend the store's URL"
            " (an absolute path takes four slashes, sqlite:////var/lib/…).",
            reason="STORE_URL_INVALID",
        )
    # An existing file is not opened even for a moment: closing it again would drop the locks
    # that SQLite holds on it in this process (fcntl(2)).
    with file_seam(), suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE))


def make_private(path: Path) -> None:
    """Take others' permissions from the file and those beside it. Raises StoreUnavailable."""
    with file_seam():
        _restrict(path)
        for suffix in SIDE_FILES:
            # They come and go with the connections.
            with suppress(FileNotFoundError):
                _restrict(path.with_name(path.name + suffix))


def _restrict(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise StoreMissing
    if stat.S_IMODE(mode) != _PRIVATE:
        path.chmod(_PRIVATE)
