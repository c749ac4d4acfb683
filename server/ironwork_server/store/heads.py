"""The newest head of each audit log: transactions (see core.ports.HeadStore).

As in transactions.py, each function runs inside a transaction that the caller began and ends.
"""

from datetime import datetime

import sqlalchemy as sa

from ironwork_server.core.values import LogHead
from ironwork_server.store.rows import micros
from ironwork_server.store.schema import log_heads


def log_head(connection: sa.Connection, origin: str) -> LogHead | None:
    row = connection.execute(
        sa.select(
            log_heads.c.origin, log_heads.c.folder_id, log_heads.c.size, log_heads.c.root
        ).where(log_heads.c.origin == origin)
    ).one_or_none()
    return None if row is None else LogHead(*row)


def swap(connection: sa.Connection, old: LogHead | None, new: LogHead, now: datetime) -> bool:
    """See HeadStore.swap_log_head. signed_at is now: the signature follows."""
    if log_head(connection, new.origin) != old:
        return False
    values = {
        "folder_id": new.folder_id,
        "size": new.size,
        "root": new.root,
        "signed_at": micros(now),
    }
    if old is None:
        connection.execute(sa.insert(log_heads), {"origin": new.origin, **values})
    else:
        connection.execute(
            sa.update(log_heads).where(log_heads.c.origin == new.origin).values(values)
        )
    return True
