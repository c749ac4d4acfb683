"""Break-glass copies: transactions on their table (see core.ports.WrapStore, ADR 0023).

As in transactions.py, each function runs inside a transaction that the caller began and ends.
"""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from ironwork_server.core.values import BreakGlassCopy
from ironwork_server.store.counters import owe_erasing
from ironwork_server.store.schema import break_glass

# Rows count from 1.
PEPPER_SEQUENCE = 0


def copies(connection: sa.Connection) -> Mapping[str, int]:
    """See WrapStore.copies."""
    counted = sa.select(break_glass.c.recipient, sa.func.count()).group_by(break_glass.c.recipient)
    return {one: number for one, number in connection.execute(counted)}  # noqa: C416 - typed rows


def pepper_copy(connection: sa.Connection) -> BreakGlassCopy | None:
    return _kept(connection, PEPPER_SEQUENCE)


def keep_copy(connection: sa.Connection, sequence: int, copy: BreakGlassCopy) -> None:
    """Put copy beside the row, in place of the one that is there. Another recipient's is to be
    erased: what is left of it would open for whom it is no longer meant.
    """
    kept = _kept(connection, sequence)
    if kept is not None and kept.recipient != copy.recipient:
        owe_erasing(connection)
    drop_copy(connection, sequence)
    connection.execute(
        sa.insert(break_glass),
        {"sequence": sequence, "recipient": copy.recipient, "sealed": copy.sealed},
    )


def drop_copy(connection: sa.Connection, sequence: int) -> None:
    connection.execute(sa.delete(break_glass).where(break_glass.c.sequence == sequence))


def drop_copies(
    connection: sa.Connection, sequences: Sequence[int], recipient: str
) -> Sequence[bool]:
    """See WrapStore.drop_copies."""
    done = [
        connection.execute(
            sa.delete(break_glass).where(
                break_glass.c.sequence == sequence, break_glass.c.recipient == recipient
            )
        ).rowcount
        == 1
        for sequence in sequences
    ]
    if any(done):
        owe_erasing(connection)
    return done


def copy_of(recipient: str | None, sealed: bytes | None) -> BreakGlassCopy | None:
    """A copy as its columns have it; None where the row has none."""
    return None if recipient is None or sealed is None else BreakGlassCopy(recipient, sealed)


def _kept(connection: sa.Connection, sequence: int) -> BreakGlassCopy | None:
    row = connection.execute(
        sa.select(break_glass.c.recipient, break_glass.c.sealed).where(
            break_glass.c.sequence == sequence
        )
    ).one_or_none()
    return None if row is None else copy_of(*row)
