"""What every WrapStore does: which master key wraps what, and moving it, beside serving stores."""

import asyncio
from dataclasses import replace

import pytest

from fixtures.stores import SqliteStores, added, plain_add, stored_key, wrapped_key
from ironwork_hsm import WrappedKey
from ironwork_server.core.values import BreakGlassCopy, SealedKey, Swap, Wrapping
from ironwork_server.store import Store, VersionRetired

MASTER = wrapped_key().backend


def under(version: int, backend: str = MASTER) -> SealedKey:
    wrapped = wrapped_key(version)
    return SealedKey(
        1, b"n" * 12, b"c" * 124, WrappedKey(backend, version, wrapped.mechanism, wrapped.blob)
    )


async def test_no_version_is_switched_on_at_first(store: Store) -> None:
    """A store in which nothing was ever switched on says so, and has nothing wrapped."""
    assert await store.switched_version(MASTER) is None
    assert await store.wrappings() == []


async def test_one_version_of_a_backend_is_switched_on(stores: SqliteStores, url: str) -> None:
    """The last switch counts, for each backend by itself, in every open store at once."""
    one, other = stores.open(url), stores.open(url)
    await one.switch_on(MASTER, 1)
    await one.switch_on("awskms:///k", 7)
    await one.switch_on(MASTER, 2)
    await one.switch_on(MASTER, 2)
    assert await other.switched_version(MASTER) == 2
    assert await other.switched_version("awskms:///k") == 7
    assert await other.switched_version("another") is None


async def test_the_first_version_is_switched_on_once(stores: SqliteStores, url: str) -> None:
    """Where none was switched on yet, a device's newest is, for every process; one that is switched
    on stays, whatever the device holds by now.
    """
    opened = [stores.open(url) for _ in range(4)]
    firsts = await asyncio.gather(
        *(store.first_version(MASTER, n) for n, store in enumerate(opened, start=1))
    )
    assert len(set(firsts)) == 1
    assert await opened[0].switched_version(MASTER) == firsts[0]
    await opened[0].switch_on(MASTER, 20)
    assert await opened[1].first_version(MASTER, 30) == 20


async def test_a_store_in_use_begins_with_what_wraps_its_rows(store: Store) -> None:
    """Where rows or the pepper are wrapped already, the greatest version among them is switched on,
    not a newer one that the device holds; other backends' rows do not count.
    """
    await added(store, stored_key(sealed=under(1)))
    await added(store, stored_key(sealed=under(8, "another")))
    await store.create_pepper(wrapped_key(2))
    assert await store.first_version(MASTER, 5) == 2
    assert await store.first_version("unused", 5) == 5


async def test_what_each_version_wraps_is_counted(store: Store) -> None:
    """Rows and the pepper are counted under the version that wraps them; versions that are only
    switched on or retired are there too, in order.
    """
    for version in (1, 1, 2):
        await added(store, stored_key(sealed=under(version)))
    await store.create_pepper(wrapped_key(1))
    await store.switch_on(MASTER, 3)
    await store.retire("old", 9)
    assert await store.wrappings() == [
        Wrapping("old", 9, retired=True),
        Wrapping(MASTER, 1, rows=2, pepper=True),
        Wrapping(MASTER, 2, rows=1),
        Wrapping(MASTER, 3, switched_on=True),
    ]


async def test_rows_to_move_are_read_in_order_and_without_their_keys(store: Store) -> None:
    """Rows that another version or backend wraps come oldest first, in pages, each once; what is
    read of a row has no ciphertext in it.
    """
    keys = [
        await added(store, stored_key(sealed=under(version, backend)))
        for version, backend in ((1, MASTER), (2, MASTER), (2, "old"), (1, MASTER))
    ]
    first = await store.wrapped_elsewhere(MASTER, 2, after_sequence=0, limit=2)
    rest = await store.wrapped_elsewhere(MASTER, 2, after_sequence=first[-1].sequence, limit=2)
    rows = [*first, *rest]
    assert [row.key_id for row in rows] == [keys[0].key_id, keys[2].key_id, keys[3].key_id]
    assert [row.wrapped for row in rows] == [keys[n].sealed.wrapped for n in (0, 2, 3)]
    assert (rows[0].workspace, rows[0].created_at) == ("acme", keys[0].created_at)
    assert not any(hasattr(row, "ciphertext") or hasattr(row, "sealed") for row in rows)


async def test_a_swap_replaces_the_wrapped_key_and_nothing_else(store: Store) -> None:
    """After a swap the row is the same but for what wraps its data key."""
    key = await added(store)
    new = wrapped_key(2)
    assert await store.swap([Swap(key.sequence, key.sealed.wrapped, new)]) == [True]
    found = await store.get("acme", key.key_id)
    assert found is not None
    assert found.sealed == SealedKey(1, key.sealed.nonce, key.sealed.ciphertext, new)
    assert (found.sequence, found.fingerprint) == (key.sequence, key.fingerprint)


async def test_a_swap_revives_nothing(store: Store) -> None:
    """A row that was deleted, or moved by another meanwhile, stays as it is; the others of the
    same transaction are moved.
    """
    gone, moved, there = [await added(store) for _ in range(3)]
    await store.delete("acme", gone.key_id, replay=None)
    theirs = wrapped_key(3)
    await store.swap([Swap(moved.sequence, moved.sealed.wrapped, theirs)])
    swaps = [Swap(key.sequence, key.sealed.wrapped, wrapped_key(2)) for key in (gone, moved, there)]
    assert await store.swap(swaps) == [False, False, True]
    assert await store.get("acme", gone.key_id) is None
    found = await store.get("acme", moved.key_id)
    assert found is not None
    assert found.sealed.wrapped == theirs
    assert await store.swap([]) == []


async def test_the_pepper_is_swapped_once(store: Store) -> None:
    """The pepper too is compared before it is replaced."""
    old, new = wrapped_key(1), wrapped_key(2)
    assert not await store.swap_pepper(old, new)
    await store.create_pepper(old)
    assert await store.swap_pepper(old, new)
    assert not await store.swap_pepper(old, wrapped_key(2))
    assert await store.pepper() == new


async def test_a_version_in_need_is_not_retired(store: Store) -> None:
    """Retiring tells what the version wraps, and does nothing while that is not nothing."""
    key = await added(store)
    assert await store.retire(MASTER, 1) == Wrapping(MASTER, 1, rows=1)
    await store.create_pepper(wrapped_key(1))
    await store.delete("acme", key.key_id, replay=None)
    assert await store.retire(MASTER, 1) == Wrapping(MASTER, 1, pepper=True)
    await added(store)


async def test_nothing_comes_under_a_retired_version(store: Store) -> None:
    """Whoever wrapped with a version before it was retired, and writes after, is refused, whatever
    it writes; nothing of it is kept.
    """
    key = await added(store, stored_key(sealed=under(2)))
    assert (await store.retire(MASTER, 1)).rows == 0
    assert (await store.retire(MASTER, 1)).retired
    late = stored_key()
    with pytest.raises(VersionRetired):
        await store.add(late, **plain_add())
    with pytest.raises(VersionRetired):
        await store.create_pepper(wrapped_key(1))
    with pytest.raises(VersionRetired):
        await store.swap([Swap(key.sequence, key.sealed.wrapped, wrapped_key(1))])
    await store.create_pepper(wrapped_key(2))
    with pytest.raises(VersionRetired):
        await store.swap_pepper(wrapped_key(2), wrapped_key(1))
    with pytest.raises(VersionRetired):
        await store.switch_on(MASTER, 1)
    assert await store.current("acme") == key


async def test_copies_are_counted_read_and_dropped_by_recipient(store: Store) -> None:
    """Those of one recipient are read in order and in pages, and dropped where they are that
    recipient's still; a drop does nothing to the rows.
    """
    keys = []
    for recipient in ("old", "new", "old", None):
        sealed = under(1)
        copy = None if recipient is None else BreakGlassCopy(recipient, b"s" * 80)
        keys.append(stored_key(sealed=replace(sealed, copy=copy)))
        await added(store, keys[-1])
    await store.create_pepper(wrapped_key(1), BreakGlassCopy("old", b"p" * 80))
    assert await store.copies() == {"old": 3, "new": 1}
    first = await store.copied_for("old", after_sequence=0, limit=1)
    rest = await store.copied_for("old", after_sequence=first[-1].sequence, limit=9)
    assert [row.sequence for row in (*first, *rest)] == [keys[0].sequence, keys[2].sequence]
    assert first[0].copy == BreakGlassCopy("old", b"s" * 80)
    dropped = await store.drop_copies([0, *(key.sequence for key in keys)], "old")
    assert dropped == [True, True, False, True, False]
    assert await store.copies() == {"new": 1}
    assert await store.pepper_copy() is None
    assert await store.get("acme", keys[0].key_id) == replace(
        keys[0], sealed=replace(keys[0].sealed, copy=None)
    )
