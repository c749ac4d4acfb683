"""Which master key wraps what: transactions of the operator's commands (see core.ports.WrapStore).

As in transactions.py, each function runs inside a transaction that the caller began and ends.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from ironwork_hsm import WrappedKey
from ironwork_server.core.values import BreakGlassCopy, Swap, WrappedRow, Wrapping
from ironwork_server.store.copies import PEPPER_SEQUENCE, copy_of, keep_copy
from ironwork_server.store.errors import VersionRetired
from ironwork_server.store.rows import moment, wrapped_row
from ironwork_server.store.schema import break_glass, keys, master_keys, pepper

_SWITCHED_ON = "SWITCHED_ON"
_RETIRED = "RETIRED"

_PEPPER = sa.select(
    pepper.c.wrap_backend, pepper.c.wrap_key_version, pepper.c.wrap_mechanism, pepper.c.wrap_blob
)


def switched_version(connection: sa.Connection, backend: str) -> int | None:
    version: int | None = connection.execute(
        sa.select(master_keys.c.version).where(
            master_keys.c.backend == backend, master_keys.c.state == _SWITCHED_ON
        )
    ).scalar()
    return version


def wrappings(connection: sa.Connection) -> Sequence[Wrapping]:
    """See WrapStore.wrappings; by backend and version."""
    counted = connection.execute(
        sa.select(keys.c.wrap_backend, keys.c.wrap_key_version, sa.func.count()).group_by(
            keys.c.wrap_backend, keys.c.wrap_key_version
        )
    )
    rows = {(backend, version): count for backend, version, count in counted}
    states = {
        (backend, version): state
        for backend, version, state in connection.execute(sa.select(*master_keys.c))
    }
    under = {(backend, version) for backend, version, *_ in connection.execute(_PEPPER)}
    return [
        Wrapping(
            backend=backend,
            version=version,
            rows=rows.get((backend, version), 0),
            pepper=(backend, version) in under,
            switched_on=states.get((backend, version)) == _SWITCHED_ON,
            retired=states.get((backend, version)) == _RETIRED,
        )
        for backend, version in sorted(rows.keys() | states.keys() | under)
    ]


def wrapped_elsewhere(
    connection: sa.Connection,
    backend: str,
    version: int,
    after_sequence: int,
    limit: int,
    recipient: str | None,
) -> Sequence[WrappedRow]:
    to_move = sa.or_(keys.c.wrap_backend != backend, keys.c.wrap_key_version != version)
    if recipient is not None:
        held = break_glass.c.recipient
        to_move = sa.or_(to_move, held.is_(None), held != recipient)
    return _page(connection, to_move, after_sequence, limit)


def copied_for(
    connection: sa.Connection, recipient: str, after_sequence: int, limit: int
) -> Sequence[WrappedRow]:
    return _page(connection, break_glass.c.recipient == recipient, after_sequence, limit)


def _page(
    connection: sa.Connection,
    condition: sa.ColumnElement[bool],
    after_sequence: int,
    limit: int,
) -> Sequence[WrappedRow]:
    found = connection.execute(
        sa.select(
            keys.c.workspace,
            keys.c.key_id,
            keys.c.sequence,
            keys.c.created_at,
            keys.c.format,
            keys.c.wrap_backend,
            keys.c.wrap_key_version,
            keys.c.wrap_mechanism,
            keys.c.wrap_blob,
            break_glass.c.recipient,
            break_glass.c.sealed,
        )
        .select_from(keys.outerjoin(break_glass, break_glass.c.sequence == keys.c.sequence))
        .where(keys.c.sequence > after_sequence, condition)
        .order_by(keys.c.sequence)
        .limit(limit)
    )
    return [
        WrappedRow(
            row[0], row[1], row[2], moment(row[3]), row[4], WrappedKey(*row[5:9]), copy_of(*row[9:])
        )
        for row in found
    ]


def swap(connection: sa.Connection, swaps: Sequence[Swap]) -> Sequence[bool]:
    """See WrapStore.swap. Only ever an UPDATE: nothing that is gone can come back."""
    done = []
    for one in swaps:
        refuse_retired(connection, one.new)
        changed = connection.execute(
            sa.update(keys)
            .where(
                keys.c.sequence == one.sequence,
                keys.c.wrap_backend == one.old.backend,
                keys.c.wrap_key_version == one.old.key_version,
                keys.c.wrap_blob == one.old.blob,
            )
            .values(wrapped_row(one.new))
        ).rowcount
        if changed and one.copy is not None:
            keep_copy(connection, one.sequence, one.copy)
        done.append(changed == 1)
    return done


def swap_pepper(
    connection: sa.Connection, old: WrappedKey, new: WrappedKey, copy: BreakGlassCopy | None
) -> bool:
    refuse_retired(connection, new)
    changed = connection.execute(
        sa.update(pepper)
        .where(
            pepper.c.wrap_backend == old.backend,
            pepper.c.wrap_key_version == old.key_version,
            pepper.c.wrap_blob == old.blob,
        )
        .values(wrapped_row(new))
    ).rowcount
    if changed and copy is not None:
        keep_copy(connection, PEPPER_SEQUENCE, copy)
    return changed == 1


def first_version(connection: sa.Connection, backend: str, newest: int) -> int:
    """See KeyStore.first_version."""
    switched = switched_version(connection, backend)
    if switched is not None:
        return switched
    used = [
        one.version
        for one in wrappings(connection)
        if one.backend == backend and (one.rows or one.pepper)
    ]
    first = max(used, default=newest)
    switch_on(connection, backend, first)
    return first


def switch_on(connection: sa.Connection, backend: str, version: int) -> None:
    if _state(connection, backend, version) == _RETIRED:
        raise VersionRetired
    connection.execute(
        sa.delete(master_keys).where(
            master_keys.c.backend == backend, master_keys.c.state == _SWITCHED_ON
        )
    )
    _note(connection, backend, version, _SWITCHED_ON)


def retire(connection: sa.Connection, backend: str, version: int) -> Wrapping:
    found = {(one.backend, one.version): one for one in wrappings(connection)}
    wrapping = found.get((backend, version), Wrapping(backend, version))
    if not wrapping.rows and not wrapping.pepper:
        connection.execute(
            sa.delete(master_keys).where(
                master_keys.c.backend == backend, master_keys.c.version == version
            )
        )
        _note(connection, backend, version, _RETIRED)
    return wrapping


def refuse_retired(connection: sa.Connection, wrapped: WrappedKey) -> None:
    """Raises VersionRetired for what nothing may be wrapped with any more."""
    if _state(connection, wrapped.backend, wrapped.key_version) == _RETIRED:
        raise VersionRetired


def _state(connection: sa.Connection, backend: str, version: int) -> str | None:
    state: str | None = connection.execute(
        sa.select(master_keys.c.state).where(
            master_keys.c.backend == backend, master_keys.c.version == version
        )
    ).scalar()
    return state


def _note(connection: sa.Connection, backend: str, version: int, state: str) -> None:
    connection.execute(
        sa.insert(master_keys), {"backend": backend, "version": version, "state": state}
    )
