"""The store's counters: the sequence of rows, and what is owed to erasing (see erasure.py).

As in transactions.py, each function runs inside a transaction that the caller began and ends.
"""

import sqlalchemy as sa

from ironwork_server.store.errors import StoreCorrupt
from ironwork_server.store.schema import counters


def counter(connection: sa.Connection, name: str) -> int:
    """Raises StoreCorrupt where the store has no such counter."""
    value: int | None = connection.execute(
        sa.select(counters.c.value).where(counters.c.name == name)
    ).scalar()
    if value is None:
        raise StoreCorrupt
    return value


def set_counter(connection: sa.Connection, name: str, value: int) -> None:
    connection.execute(sa.update(counters).where(counters.c.name == name).values(value=value))


def count(connection: sa.Connection, name: str) -> int:
    """Add one to a counter and return it."""
    value: int | None = connection.execute(
        sa.update(counters)
        .where(counters.c.name == name)
        .values(value=counters.c.value + 1)
        .returning(counters.c.value)
    ).scalar()
    if value is None:
        raise StoreCorrupt
    return value


def owe_erasing(connection: sa.Connection) -> None:
    """What this transaction deletes is to be erased from the files after it."""
    count(connection, "deleted")
