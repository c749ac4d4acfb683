"""A break-glass copy that was dropped, or gave way to another recipient's, leaves no trace."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.stores import SqliteStores, added, stored_key
from ironwork_server.core.values import BreakGlassCopy, StoredKey, Swap
from ironwork_server.store import Store, TraceRemains

from .test_sqlite_erasure import SHORT, Reader, file_bytes


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    made = SqliteStores(tmp_path)
    yield made
    await made.close()


async def copied(store: Store, recipient: str = "old") -> tuple[StoredKey, BreakGlassCopy]:
    copy = BreakGlassCopy(recipient, os.urandom(80))
    key = stored_key()
    key = replace(key, sealed=replace(key.sealed, copy=copy))
    await added(store, key)
    return key, copy


async def test_dropped_copies_are_erased(stores: SqliteStores) -> None:
    """After drop_copies and erase nothing of the copies is in the files; the others are."""
    url = stores.new()
    store = stores.open(url)
    gone, stays = [await copied(store) for _ in range(40)], await copied(store, "new")
    assert gone[0][1].sealed in await file_bytes(url), "the search finds what is there"
    done = await store.drop_copies([key.sequence for key, _ in gone], "old")
    assert done == [True] * 40
    await store.erase()
    found = await file_bytes(url)
    assert [copy for _, copy in gone if copy.sealed[:12] in found] == []
    assert stays[1].sealed in found


async def test_another_recipient_s_copy_erases_the_old(stores: SqliteStores) -> None:
    """A swap that puts a copy for somebody else in its place owes the erasing of the old one, also
    where the process ends before: the next one that opens the store does it.
    """
    url = stores.new()
    store = stores.open(url)
    key, old = await copied(store)
    wrapped = key.sealed.wrapped
    new = BreakGlassCopy("new", os.urandom(80))
    assert await store.swap([Swap(key.sequence, wrapped, wrapped, new)]) == [True]
    await store.close()
    stores.open(url)
    found = await file_bytes(url)
    assert old.sealed[:12] not in found
    assert new.sealed in found


async def test_an_erasing_that_a_reader_hinders_is_owed(stores: SqliteStores) -> None:
    """It fails within its deadline, says what to do, and is done by the next try."""
    url = stores.new()
    store = stores.open(url, deadlines=SHORT)
    key, copy = await copied(store)
    await store.drop_copies([key.sequence], "old")
    reader = Reader(url)
    with pytest.raises(TraceRemains, match="repeat"):
        await store.erase()
    reader.end()
    await stores.open(url).erase()
    assert copy.sealed[:12] not in await file_bytes(url)
