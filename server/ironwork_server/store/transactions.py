"""What the store does, once, for every database: SQLAlchemy Core on an open transaction.

Each function runs inside a transaction that the caller began and ends. A function that writes
expects to be the only writer until that transaction ends (SQLite: BEGIN IMMEDIATE); its checks
rest on that. Raising anything rolls the transaction back.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from ironwork_hsm import WrappedKey
from ironwork_server.core.ports import (
    AlreadyAnswered,
    KeyExists,
    OrganizationDiffers,
    TooManyKeys,
)
from ironwork_server.core.values import BreakGlassCopy, KeyState, Replay, StoredKey
from ironwork_server.store.copies import PEPPER_SEQUENCE, drop_copy, keep_copy
from ironwork_server.store.counters import count, owe_erasing
from ironwork_server.store.errors import StoreCorrupt
from ironwork_server.store.rewrapping import refuse_retired
from ironwork_server.store.rows import (
    key_row,
    micros,
    replay_row,
    stored_key,
    stored_replay,
    wrapped_row,
)
from ironwork_server.store.schema import keys, meta, organizations, pepper, replays

REPLAYS_KEPT = timedelta(days=7)
# Each write keeps one replay at most, so any number above one holds the table's size down.
PURGED_AT_ONCE = 100

_Keys = sa.Select[*tuple[Any, ...]]
ReplayOf = Callable[[StoredKey | None], Replay]


def current_key(workspace: object) -> _Keys:
    """The hot read's statement; drivers that bypass SQLAlchemy compile it."""
    return (
        sa.select(*keys.c)
        .where(keys.c.workspace == workspace)
        .order_by(keys.c.sequence.desc())
        .limit(sa.literal_column("1"))
        .offset(sa.literal_column("0"))
    )


# --- reads ---------------------------------------------------------------------------------------


def current(connection: sa.Connection, workspace: str) -> StoredKey | None:
    return _one_key(connection, current_key(workspace))


def get(connection: sa.Connection, workspace: str, key_id: str) -> StoredKey | None:
    return _one_key(
        connection,
        sa.select(*keys.c).where(keys.c.workspace == workspace, keys.c.key_id == key_id),
    )


def find(connection: sa.Connection, workspace: str, fingerprint: bytes) -> StoredKey | None:
    return _one_key(
        connection,
        sa.select(*keys.c).where(keys.c.workspace == workspace, keys.c.fingerprint == fingerprint),
    )


def page(
    connection: sa.Connection, workspace: str, before_sequence: int | None, limit: int
) -> Sequence[StoredKey]:
    statement = sa.select(*keys.c).where(keys.c.workspace == workspace)
    if before_sequence is not None:
        statement = statement.where(keys.c.sequence < before_sequence)
    statement = statement.order_by(keys.c.sequence.desc()).limit(limit)
    return [stored_key(row) for row in connection.execute(statement)]


def find_replay(
    connection: sa.Connection, workspace: str, method: str, request_id: str
) -> Replay | None:
    row = connection.execute(
        sa.select(*replays.c).where(
            replays.c.workspace == workspace,
            replays.c.method == method,
            replays.c.request_id == request_id,
        )
    ).one_or_none()
    return None if row is None else stored_replay(row)


def kept_pepper(connection: sa.Connection) -> WrappedKey | None:
    row = connection.execute(
        sa.select(
            pepper.c.wrap_backend,
            pepper.c.wrap_key_version,
            pepper.c.wrap_mechanism,
            pepper.c.wrap_blob,
        )
    ).one_or_none()
    return None if row is None else WrappedKey(*row)


def meta_value(connection: sa.Connection, name: str) -> str:
    """Raises StoreCorrupt where the store has no such value: every migrated store has them."""
    value: str | None = connection.execute(
        sa.select(meta.c.value).where(meta.c.name == name)
    ).scalar()
    if value is None:
        raise StoreCorrupt
    return value


# --- writes --------------------------------------------------------------------------------------


def next_sequence(connection: sa.Connection) -> int:
    return count(connection, "sequence")


def add(
    connection: sa.Connection,
    key: StoredKey,
    *,
    replay: Replay | None,
    max_keys: int,
    allow_different_organization: bool,
    now: datetime,
) -> None:
    """See KeyStore.add; the order of the checks is part of the contract."""
    if replay is not None:
        _refuse_answered(connection, replay)
    same = find(connection, key.workspace, key.fingerprint)
    if same is not None:
        raise KeyExists(same.key_id)
    held = connection.execute(
        sa.select(sa.func.count()).select_from(keys).where(keys.c.workspace == key.workspace)
    ).scalar_one()
    if held >= max_keys:
        raise TooManyKeys
    if key.organization_id and not allow_different_organization:
        _refuse_other_organization(connection, key)
    refuse_retired(connection, key.sealed.wrapped)
    connection.execute(sa.insert(keys), key_row(key))
    if key.sealed.copy is not None:
        keep_copy(connection, key.sequence, key.sealed.copy)
    if key.organization_id:
        _remember_organization(connection, key)
    if replay is not None:
        connection.execute(sa.insert(replays), replay_row(replay))
    _purge_replays(connection, now)


def delete(
    connection: sa.Connection,
    workspace: str,
    key_id: str,
    *,
    replay: ReplayOf | None,
    now: datetime,
) -> tuple[bool, StoredKey | None]:
    """See KeyStore.delete. replay is called once, before anything is written, since it alone
    knows the request's id; what it made is dropped where there was no row.
    """
    remaining = _one_key(connection, _newest_but(workspace, key_id))
    answer = None if replay is None else replay(remaining)
    if answer is not None:
        _refuse_answered(connection, answer)
    deleted = connection.execute(
        sa.delete(keys)
        .where(keys.c.workspace == workspace, keys.c.key_id == key_id)
        .returning(keys.c.sequence)
    ).scalar()
    if deleted is None:
        return False, remaining
    drop_copy(connection, deleted)
    owe_erasing(connection)
    if answer is not None:
        connection.execute(sa.insert(replays), replay_row(answer))
    _purge_replays(connection, now)
    return True, remaining


def set_state(connection: sa.Connection, workspace: str, key_id: str, state: KeyState) -> None:
    """A missing row is ignored."""
    connection.execute(
        sa.update(keys)
        .where(keys.c.workspace == workspace, keys.c.key_id == key_id)
        .values(state=state.value)
    )


def record_uses(
    connection: sa.Connection, uses: Mapping[tuple[str, str], datetime], *, now: datetime
) -> None:
    """See KeyStore.record_uses: one transaction, however many there are."""
    rows = [
        {"of_workspace": workspace, "of_key": key_id, "used": micros(used)}
        for (workspace, key_id), used in uses.items()
    ]
    if rows:
        connection.execute(_RECORD_USE, rows)
    _purge_replays(connection, now)


def create_pepper(
    connection: sa.Connection, wrapped: WrappedKey, copy: BreakGlassCopy | None
) -> WrappedKey:
    """See KeyStore.create_pepper."""
    kept = kept_pepper(connection)
    if kept is not None:
        return kept
    refuse_retired(connection, wrapped)
    connection.execute(sa.insert(pepper), {"id": 1, **wrapped_row(wrapped)})
    if copy is not None:
        keep_copy(connection, PEPPER_SEQUENCE, copy)
    return wrapped


def set_meta(connection: sa.Connection, name: str, value: str) -> None:
    connection.execute(sa.update(meta).where(meta.c.name == name).values(value=value))


# --- parts ---------------------------------------------------------------------------------------

_RECORD_USE = (
    sa.update(keys)
    .where(
        keys.c.workspace == sa.bindparam("of_workspace"),
        keys.c.key_id == sa.bindparam("of_key"),
        sa.or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < sa.bindparam("used")),
    )
    .values(last_used_at=sa.bindparam("used"))
)


def _one_key(connection: sa.Connection, statement: _Keys) -> StoredKey | None:
    row = connection.execute(statement).one_or_none()
    return None if row is None else stored_key(row)


def _newest_but(workspace: str, key_id: str) -> _Keys:
    return current_key(workspace).where(keys.c.key_id != key_id)


def _refuse_answered(connection: sa.Connection, replay: Replay) -> None:
    first = find_replay(connection, replay.workspace, replay.method, replay.request_id)
    if first is not None:
        raise AlreadyAnswered(first)


def _refuse_other_organization(connection: sa.Connection, key: StoredKey) -> None:
    named = connection.execute(
        sa.select(keys.c.organization_id)
        .where(keys.c.workspace == key.workspace, keys.c.organization_id != "")
        .distinct()
    ).scalars()
    held = frozenset(named) or _remembered(connection, key.workspace)
    if held and key.organization_id not in held:
        raise OrganizationDiffers(held)


def _remembered(connection: sa.Connection, workspace: str) -> frozenset[str]:
    """What the workspace's keys were of when it still had some: none or one."""
    of_workspace = organizations.c.workspace == workspace
    found = connection.execute(sa.select(organizations.c.organization_id).where(of_workspace))
    return frozenset(found.scalars())


def _remember_organization(connection: sa.Connection, key: StoredKey) -> None:
    values = {"organization_id": key.organization_id}
    of_workspace = organizations.c.workspace == key.workspace
    if not connection.execute(sa.update(organizations).where(of_workspace).values(values)).rowcount:
        connection.execute(sa.insert(organizations), values | {"workspace": key.workspace})


def _purge_replays(connection: sa.Connection, now: datetime) -> None:
    """Drop replays that are too old, oldest first, a bounded number."""
    old = connection.execute(
        sa.select(replays.c.workspace, replays.c.method, replays.c.request_id)
        .where(replays.c.created_at < micros(now - REPLAYS_KEPT))
        .order_by(replays.c.created_at)
        .limit(PURGED_AT_ONCE)
    ).all()
    if old:
        identity = sa.tuple_(replays.c.workspace, replays.c.method, replays.c.request_id)
        connection.execute(sa.delete(replays).where(identity.in_([tuple(row) for row in old])))
