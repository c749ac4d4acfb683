"""Kept data keys: off by default, bounded, bound to their row, on record, wiped at their end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from ironwork_hsm import BlobRejected
from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.names import new_key_id
from ironwork_server.core.values import Action, StoredKey
from ironwork_server.custody import data_key_cache
from ironwork_server.custody.data_key_cache import CacheBounds, DataKeyCache
from ironwork_server.custody.delete_key import KeyDeleter
from ironwork_server.custody.vault import Vault

from .conftest import KEY, OTHER_KEY, WORKSPACE, Custody
from .test_add_key import add


@dataclass
class Timers:
    """The loop's clock, in the test's hand."""

    now: float = 0.0
    waiting: list[tuple[float, Callable[[], None], "Handle"]] = field(default_factory=list)

    def later(self, delay_s: float, callback: Callable[[], None]) -> "Handle":
        handle = Handle()
        self.waiting.append((self.now + delay_s, callback, handle))
        return handle

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        due = [entry for entry in self.waiting if entry[0] <= self.now]
        self.waiting = [entry for entry in self.waiting if entry[0] > self.now]
        for _, callback, handle in due:
            if not handle.cancelled:
                callback()


class Handle:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Kept:
    """A vault that keeps data keys, over everything that `custody` has."""

    def __init__(self, custody: Custody, **bounds: float) -> None:
        self.custody = custody
        self.timers = Timers()
        chosen = {"max_age_s": 10.0, "max_uses": 100, "max_entries": 2} | bounds
        self.cache = DataKeyCache(
            CacheBounds(**chosen),  # type: ignore[arg-type]
            clock=lambda: self.timers.now,
            later=self.timers.later,
        )
        self.vault = Vault([custody.wrapper], custody.store, cache=self.cache)

    async def row(self, key: bytes = KEY) -> StoredKey:
        """Add a key; its row."""
        await add(self.custody, key)
        found = await self.custody.store.current(WORKSPACE)
        assert found is not None
        self.custody.wrapper.unwraps = 0
        return found

    async def use(self, row: StoredKey) -> bytes:
        """One use; its data key, which is wiped as a user does."""
        async with self.custody.admit(Action.WITH_KEY) as permit:
            data_key = await self.vault.unwrap(permit, row)
        copy = bytes(data_key)
        data_key[:] = bytes(len(data_key))
        return copy

    def internals(self) -> list[bytearray]:
        """The very buffers that are kept."""
        return [entry.data_key for entry in self.cache._entries.values()]

    @property
    def unwraps(self) -> int:
        return self.custody.wrapper.unwraps

    def recorded(self, operation: str) -> list[int]:
        return [
            entry.sequence for entry in self.custody.entries() if entry.event.operation == operation
        ]


async def test_without_it_every_use_unwraps(custody: Custody) -> None:
    """A vault keeps nothing unless it is told to, and forgetting nothing is no error."""
    kept = Kept(custody)
    row = await kept.row()
    kept.vault = custody.vault
    assert await kept.use(row) == await kept.use(row)
    assert kept.unwraps == 2
    kept.vault.forget(WORKSPACE, row.key_id)


async def test_each_use_names_the_unwrap_that_it_rests_on(custody: Custody) -> None:
    """Later uses ask no HSM; each is on record before it, with the index of the unwrap's intent."""
    kept = Kept(custody)
    row = await kept.row()
    first = await kept.use(row)
    assert {await kept.use(row) for _ in range(3)} == {first}
    assert kept.unwraps == 1
    unwrap = kept.recorded("hsm.unwrap")[-2]
    uses = [entry for entry in custody.entries() if entry.event.operation == "cache.use"]
    assert [entry.event.details["unwrap_index"] for entry in uses] == [unwrap] * 3
    assert {entry.event.key_id for entry in uses} == {row.key_id}
    assert all(entry.event.principal for entry in uses)


async def test_a_use_that_cannot_be_recorded_is_none(custody: Custody) -> None:
    """Where the log cannot be written nothing is handed out, and the copy is wiped."""
    kept = Kept(custody)
    row = await kept.row()
    await kept.use(row)
    handed_out: list[bytearray] = []
    wipe = data_key_cache.wipe

    def failing(event: object) -> Exception | None:
        if getattr(event, "operation", "") == "cache.use":
            return Unavailable("no", reason="AUDIT_UNAVAILABLE")
        return None

    custody.journal.failing = failing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            data_key_cache, "wipe", lambda buffer: (handed_out.append(buffer), wipe(buffer))
        )
        with pytest.raises(Unavailable):
            await kept.use(row)
    assert handed_out == [bytearray(32)]


async def test_it_ends_with_its_age(custody: Custody) -> None:
    """At its age a timer overwrites it, used or not, and the HSM is asked again."""
    kept = Kept(custody, max_age_s=10.0)
    row = await kept.row()
    await kept.use(row)
    (buffer,) = kept.internals()
    kept.timers.pass_s(9.9)
    assert any(buffer)
    kept.timers.pass_s(0.1)
    assert not any(buffer)
    assert len(kept.cache) == 0
    await kept.use(row)
    assert kept.unwraps == 2


async def test_its_age_counts_also_where_the_timer_is_late(custody: Custody) -> None:
    """A busy loop hands out nothing that is too old."""
    kept = Kept(custody, max_age_s=10.0)
    row = await kept.row()
    await kept.use(row)
    (buffer,) = kept.internals()
    kept.timers.now = 10.0
    await kept.use(row)
    assert kept.unwraps == 2
    assert not any(buffer)


async def test_it_ends_with_its_last_use(custody: Custody) -> None:
    """One unwrap serves as many uses as were set, its own included."""
    kept = Kept(custody, max_uses=3)
    row = await kept.row()
    await kept.use(row)
    (buffer,) = kept.internals()
    await kept.use(row)
    await kept.use(row)
    assert not any(buffer)
    assert len(kept.cache) == 0
    await kept.use(row)
    assert kept.unwraps == 2


async def test_one_use_keeps_nothing(custody: Custody) -> None:
    """With a single use there is nothing to keep."""
    kept = Kept(custody, max_uses=1)
    await kept.use(await kept.row())
    assert len(kept.cache) == 0


async def test_it_belongs_to_its_row(custody: Custody) -> None:
    """A row that differs in anything that its blob is bound to, or in the blob, is not served."""
    kept = Kept(custody, max_entries=10)
    row = await kept.row()
    await kept.use(row)
    wrapped = row.sealed.wrapped
    blob = wrapped.blob[:-1] + bytes([wrapped.blob[-1] ^ 1])
    others = [
        replace(row, key_id=new_key_id()),
        replace(row, sequence=row.sequence + 1),
        replace(row, created_at=row.created_at + timedelta(microseconds=1)),
        replace(row, sealed=replace(row.sealed, wrapped=replace(wrapped, blob=blob))),
        replace(row, sealed=replace(row.sealed, wrapped=replace(wrapped, key_version=2))),
    ]
    for other in others:
        with pytest.raises(Exception, match=r"does not open|not in the HSM"):
            await kept.use(other)
    assert kept.unwraps == 1 + len(others)


async def test_deleting_wipes_it(custody: Custody) -> None:
    """DeleteKey overwrites what is kept of its key, and of no other's."""
    kept = Kept(custody)
    first = await kept.row()
    await kept.use(first)
    second = await kept.row(OTHER_KEY)
    await kept.use(second)
    buffers = kept.internals()
    deleter = KeyDeleter(
        store=custody.store, in_flight=custody.in_flight, freshness_s=0.0, forget=kept.vault.forget
    )
    async with custody.admit(Action.DELETE_KEY, key_id=first.key_id) as permit:
        await deleter.delete(permit, first.key_id, cancel_in_flight=False, request_id="")
    assert [any(buffer) for buffer in buffers] == [False, True]


@pytest.mark.parametrize(
    ("fault", "left"), [(HsmUnavailable("gone"), 0), (BlobRejected("damaged"), 1)]
)
async def test_a_failing_device_wipes_everything(
    custody: Custody, fault: Exception, left: int
) -> None:
    """Who takes the HSM away ends the keys' use; a damaged record is not the HSM's fault."""
    kept = Kept(custody)
    first = await kept.row()
    await kept.use(first)
    (buffer,) = kept.internals()
    second = await kept.row(OTHER_KEY)
    custody.wrapper.fault = fault  # type: ignore[assignment]
    with pytest.raises(Exception, match=r"does not answer|does not open"):
        await kept.use(second)
    assert len(kept.cache) == left
    assert any(buffer) is bool(left)


async def test_the_oldest_makes_room(custody: Custody) -> None:
    """There are never more than were set; the oldest is overwritten."""
    kept = Kept(custody, max_entries=1)
    await kept.use(await kept.row())
    (oldest,) = kept.internals()
    await kept.use(await kept.row(OTHER_KEY))
    assert len(kept.cache) == 1
    assert not any(oldest)


async def test_concurrent_misses_unwrap_once(custody: Custody) -> None:
    """Calls that want one row at once wait for one unwrap, and each is on record."""
    kept = Kept(custody)
    row = await kept.row()
    assert len(set(await asyncio.gather(*(kept.use(row) for _ in range(10))))) == 1
    assert kept.unwraps == 1
    assert len(kept.recorded("cache.use")) == 9


async def test_a_failed_unwrap_is_nobody_elses(custody: Custody) -> None:
    """Whoever waited for an unwrap that failed, or was cancelled, asks for one of its own."""
    kept = Kept(custody)
    row = await kept.row()
    entered, go = asyncio.Event(), asyncio.Event()
    real = custody.wrapper.unwrap

    async def held(*asked: object, **named: object) -> bytearray:
        entered.set()
        await go.wait()
        return await real(*asked, **named)  # type: ignore[arg-type]

    custody.wrapper.unwrap = held  # type: ignore[method-assign]
    leader = asyncio.create_task(kept.use(row))
    await entered.wait()
    follower = asyncio.create_task(kept.use(row))
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    go.set()
    assert len(await follower) == 32
    assert len(kept.recorded("cache.use")) == 0


async def test_what_was_forgotten_during_its_unwrap_is_not_kept(custody: Custody) -> None:
    """A deletion, and the end, count also for a data key that is on its way."""
    kept = Kept(custody)
    row = await kept.row()
    real = custody.wrapper.unwrap

    async def overtaken(*asked: object, **named: object) -> bytearray:
        kept.cache.forget(WORKSPACE, row.key_id)
        return await real(*asked, **named)  # type: ignore[arg-type]

    custody.wrapper.unwrap = overtaken  # type: ignore[method-assign]
    await kept.use(row)
    assert len(kept.cache) == 0


async def test_waiting_for_another_calls_unwrap_has_a_deadline(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call does not wait for ever for another's unwrap."""
    monkeypatch.setattr(data_key_cache, "TURN_S", 0.01)
    kept = Kept(custody)
    row = await kept.row()
    go = asyncio.Event()
    entered = asyncio.Event()

    async def hangs(*_: object, **__: object) -> bytearray:
        entered.set()
        await go.wait()
        raise HsmUnavailable("hangs")

    custody.wrapper.unwrap = hangs  # type: ignore[method-assign]
    leader = asyncio.create_task(kept.use(row))
    await entered.wait()
    with pytest.raises(Unavailable, match="does not answer"):
        await kept.use(row)
    go.set()
    with pytest.raises(Unavailable):
        await leader


async def test_the_loops_own_timer_wipes(custody: Custody) -> None:
    """On a real loop the timer is the loop's, and clear ends it."""
    kept = Kept(custody)
    row = await kept.row()
    kept.cache = DataKeyCache(CacheBounds(max_age_s=60.0, max_uses=5, max_entries=5))
    kept.vault = Vault([custody.wrapper], custody.store, cache=kept.cache)
    await kept.use(row)
    (buffer,) = kept.internals()
    kept.cache.clear()
    assert not any(buffer)
    assert len(kept.cache) == 0
