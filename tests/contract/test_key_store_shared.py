"""What every KeyStore does for several users at once, over restarts, and when something fails."""

import asyncio
import sys
from pathlib import Path

import pytest

from fixtures.stores import (
    NOON,
    Faults,
    SqliteStores,
    added,
    plain_add,
    replay,
    stored_key,
    wrapped_key,
)
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.ports import (
    AlreadyAnswered,
)
from ironwork_server.core.values import KeyState
from ironwork_server.store import Store

# --- several stores, processes and lives ---------------------------------------------------------


async def test_a_write_is_read_at_once_everywhere(stores: SqliteStores, url: str) -> None:
    """Every read that begins after a write returned sees it, in any store on that database."""
    writer, reader = stores.open(url), stores.open(url)
    for _ in range(20):
        key = await added(writer)
        assert await reader.current("acme") == key
        assert await reader.get("acme", key.key_id) == key
    await writer.delete("acme", key.key_id, replay=None)
    assert await reader.current("acme") != key


async def test_sequences_grow_over_stores_and_restarts(stores: SqliteStores, url: str) -> None:
    """Sequence numbers never repeat: not at once, not in another store, not after a restart or
    the deletion of the newest key.
    """
    several = [stores.open(url) for _ in range(3)]
    together = await asyncio.gather(*(several[n % 3].next_sequence() for n in range(60)))
    assert len(set(together)) == 60
    key = await added(several[0])
    assert key.sequence > max(together)
    await several[0].delete("acme", key.key_id, replay=None)
    for one in several:
        await one.close()
    assert await stores.open(url).next_sequence() > key.sequence


async def test_everything_outlives_a_restart(stores: SqliteStores, url: str) -> None:
    """What was acknowledged is there after closing and opening again."""
    store = stores.open(url)
    key = stored_key(sequence=await store.next_sequence())
    kept = replay("r1")
    await store.add(key, **plain_add(replay=kept))
    pepper = await store.create_pepper(wrapped_key())
    await store.close()
    again = stores.open(url)
    assert await again.current("acme") == key
    assert await again.find_replay("acme", "AddKey", "r1") == kept
    assert await again.pepper() == pepper
    assert again.installation_id == store.installation_id


OTHER_PROCESS = """
import asyncio, sys
sys.path[:0] = sys.argv[2].split(":")
from fixtures.stores import plain_add, stored_key
from ironwork_server.core.ports import KeyExists
from ironwork_server.store import open_store

async def main():
    store = open_store(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(25):
        key = stored_key(
            sequence=await store.next_sequence(), fingerprint=number.to_bytes(32, "big")
        )
        try:
            await store.add(key, **plain_add())
        except KeyExists:
            continue
        print(key.sequence, key.key_id, flush=True)
    await store.close()

asyncio.run(main())
"""


async def test_processes_share_one_store(stores: SqliteStores, url: str) -> None:
    """Processes that add the same keys at once make each row once, under numbers of their own,
    and this process reads them all.
    """
    tests = str(Path(__file__).parents[1])
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", OTHER_PROCESS, url, tests),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]
    store = stores.open(url)
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0]
    rows = [line.decode().split() for output, _ in outputs for line in output.splitlines()]
    page = await store.page("acme", before_sequence=None, limit=99)
    assert {(str(key.sequence), key.key_id) for key in page} == {tuple(row) for row in rows}
    assert len(page) == len(rows) == 25
    assert await store.next_sequence() > page[0].sequence


# --- interruptions and faults --------------------------------------------------------------------


async def test_a_cancelled_write_happens_whole_or_not(stores: SqliteStores, url: str) -> None:
    """A write whose await is cancelled leaves its row with its replay or neither, and the store
    works on.
    """
    store = stores.open(url)
    keys = [stored_key() for _ in range(40)]
    tasks = [
        asyncio.create_task(store.add(key, **plain_add(replay=replay(key.key_id)))) for key in keys
    ]
    for number, task in enumerate(tasks):
        # Some before they began, some meanwhile, some after they ended.
        await asyncio.sleep(0)
        if number % 2:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    last = await added(store, stored_key())
    assert await store.current("acme") == last
    for key, task in zip(keys, tasks, strict=True):
        row = await store.get("acme", key.key_id)
        kept = await store.find_replay("acme", "AddKey", key.key_id)
        assert (row is None) == (kept is None)
        assert task.cancelled() or row == key


async def test_a_write_that_failed_wrote_nothing(stores: SqliteStores, url: str) -> None:
    """A write in which the device fails before its commit is undecided, quotes nothing and leaves
    nothing, the store says so when asked, and works once the fault is gone.
    """
    faults = Faults()
    store = stores.open_faulty(url, faults)
    key = await added(store)
    faults.before = True
    number = replay("r1")
    for failing in (
        store.add(stored_key(), **plain_add(replay=number)),
        store.delete("acme", key.key_id, replay=lambda _: number),
        store.set_state("acme", key.key_id, KeyState.REJECTED_BY_ANTHROPIC),
        store.record_uses({("acme", key.key_id): NOON}),
        store.create_pepper(wrapped_key()),
        store.next_sequence(),
    ):
        with pytest.raises(Unavailable) as failed:
            await failing
        assert failed.value.reason == "STORE_UNDECIDED"
        assert "canary" not in repr(failed.value)
        assert failed.value.__suppress_context__
    for reader in (store, stores.open(url)):
        assert await reader.page("acme", before_sequence=None, limit=9) == [key]
        assert await reader.find_replay("acme", "AddKey", "r1") is None
        assert await reader.pepper() is None
    faults.before = False
    assert await store.settled("acme", key.key_id)
    assert await store.current("acme") == key
    assert (await added(store)).sequence > key.sequence


async def test_a_write_that_failed_after_its_commit_shows(stores: SqliteStores, url: str) -> None:
    """A write that was done, though its caller heard of a failure, shows as soon as it is read,
    here and elsewhere; with its request id the caller learns the answer.
    """
    faults = Faults()
    store = stores.open_faulty(url, faults)
    old = await added(store)
    key, kept = stored_key(sequence=await store.next_sequence()), replay("r1")
    faults.after = True
    with pytest.raises(Unavailable) as failed:
        await store.add(key, **plain_add(replay=kept))
    assert failed.value.reason == "STORE_UNDECIDED"
    faults.after = False
    assert await store.settled("acme", key.key_id)
    for reader in (store, stores.open(url)):
        assert await reader.current("acme") == key
    with pytest.raises(AlreadyAnswered) as answered:
        await store.add(key, **plain_add(replay=kept))
    assert answered.value.replay == kept
    faults.after = True
    with pytest.raises(Unavailable) as failed:
        await store.delete("acme", key.key_id, replay=lambda _: replay("d", method="DeleteKey"))
    assert failed.value.reason == "STORE_UNDECIDED"
    faults.after = False
    assert not await store.settled("acme", key.key_id)
    for reader in (store, stores.open(url)):
        assert await reader.current("acme") == old
    with pytest.raises(AlreadyAnswered):
        await store.delete("acme", key.key_id, replay=lambda _: replay("d", method="DeleteKey"))


async def test_a_closed_store_answers_unavailable(store: Store) -> None:
    """After close every call fails as unavailable, and closing again is nothing."""
    key = await added(store)
    await store.close()
    await store.close()
    for call in (store.current("acme"), store.get("acme", key.key_id), store.next_sequence()):
        with pytest.raises(Unavailable):
            await call


async def test_close_lets_what_waits_finish(stores: SqliteStores, url: str) -> None:
    """Writes that were accepted before close are done by it, not dropped."""
    store = stores.open(url)
    tasks = [asyncio.create_task(added(store, stored_key())) for _ in range(30)]
    await asyncio.sleep(0)
    await store.close()
    keys = await asyncio.gather(*tasks)
    assert len(await stores.open(url).page("acme", before_sequence=None, limit=99)) == len(keys)
