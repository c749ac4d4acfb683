"""What every HeadStore does: a log's newest head is put in the place of the known one only."""

import asyncio
from dataclasses import replace

import pytest

from fixtures.stores import Faults, SqliteStores
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.values import LogHead
from ironwork_server.store import Store

HEAD = LogHead("log.test/a", "ab" * 16, 0, b"\x00" * 32)


def grown(head: LogHead, size: int, by: int = 1) -> LogHead:
    return replace(head, size=size, root=bytes([by]) * 32)


async def test_a_head_is_registered_once(store: Store) -> None:
    """The first head of an origin takes no other's place, and the second of two firsts is told."""
    assert await store.log_head(HEAD.origin) is None
    assert await store.swap_log_head(None, HEAD)
    assert not await store.swap_log_head(None, replace(HEAD, folder_id="cd" * 16))
    assert await store.log_head(HEAD.origin) == HEAD


async def test_only_the_known_head_is_replaced(store: Store) -> None:
    """A head that differs in its folder, size or root, or that is not there, is left as it is."""
    newer = grown(HEAD, 5)
    assert not await store.swap_log_head(HEAD, newer)
    assert await store.log_head(HEAD.origin) is None
    assert await store.swap_log_head(None, HEAD)
    others = [replace(HEAD, folder_id="cd" * 16), replace(HEAD, size=1), grown(HEAD, 0)]
    for other in others:
        assert not await store.swap_log_head(other, newer)
    assert await store.log_head(HEAD.origin) == HEAD
    assert await store.swap_log_head(HEAD, newer)
    assert await store.swap_log_head(newer, newer)
    assert await store.log_head(HEAD.origin) == newer


async def test_each_origin_has_its_own(store: Store) -> None:
    """Logs of different origins do not meet."""
    other = replace(HEAD, origin="log.test/a/commands")
    assert await store.swap_log_head(None, HEAD)
    assert await store.swap_log_head(None, other)
    assert await store.swap_log_head(other, grown(other, 3))
    assert await store.log_head(HEAD.origin) == HEAD


async def test_of_two_stores_one_wins(stores: SqliteStores, url: str) -> None:
    """Of heads that are put in one head's place at the same time, one is there afterwards."""
    one, other = stores.open(url), stores.open(url)
    assert await one.swap_log_head(None, HEAD)
    news = [grown(HEAD, 5, by) for by in range(8)]
    swaps = [(one, other)[n % 2].swap_log_head(HEAD, new) for n, new in enumerate(news)]
    done = await asyncio.gather(*swaps)
    assert done.count(True) == 1
    assert await other.log_head(HEAD.origin) == news[done.index(True)]


@pytest.mark.parametrize("written", [False, True])
async def test_a_swap_that_failed(stores: SqliteStores, url: str, written: bool) -> None:
    """A write whose device failed is an error; the head is the old or the new one, whole."""
    assert await stores.open(url).swap_log_head(None, HEAD)
    faults = Faults()
    faulty = stores.open_faulty(url, faults)
    faults.before, faults.after = not written, written
    newer = grown(HEAD, 5)
    with pytest.raises(Unavailable):
        await faulty.swap_log_head(HEAD, newer)
    assert await stores.open(url).log_head(HEAD.origin) == (newer if written else HEAD)
