"""Every use case, cancelled at each point where it waits: what the log says is what was done."""

import asyncio
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_server.core.values import Action, Phase, Validation, Verdict
from ironwork_server.custody import vault as vaults
from ironwork_server.custody.add_key import NewKey
from ironwork_server.custody.in_flight import CallScope
from ironwork_server.custody.probe import MasterKeyProbe
from ironwork_server.custody.uninterrupted import uninterrupted
from ironwork_server.custody.use_key import Serving

from .conftest import KEY, ORGANIZATION, OTHER_KEY, REQUEST, WORKSPACE, Custody

Use = Callable[[], Coroutine[Any, Any, None]]
# More than any use case has; reaching it would mean that one never ends.
MOST_POINTS = 60


@types.coroutine
def cancelled_at(point: int, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, bool]:
    """Run work, and cancel the task that does so at its point-th wait; whether it came so far."""
    waits = 0
    thrown: BaseException | None = None
    while True:
        try:
            waited = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration:
            return waits >= point
        waits += 1
        if waits == point:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        thrown = None
        try:
            yield waited
        except BaseException as error:  # noqa: BLE001  handed on to work
            thrown = error


async def at_every_point(use: Use, check: Callable[[], Awaitable[None]]) -> int:
    """Run use once for each point, cancelled there; check after each. Gives the points' number."""
    for point in range(1, MOST_POINTS):
        task = asyncio.ensure_future(_outcome(point, use()))
        reached = await task
        await check()
        if not reached:
            return point - 1
    raise AssertionError("it never ends")


async def _outcome(point: int, work: Coroutine[Any, Any, None]) -> bool:
    try:
        reached = await cancelled_at(point, work)
        await asyncio.sleep(0)  # where a cancellation that was held back arrives
    except asyncio.CancelledError:
        return True
    return reached


async def add(custody: Custody, key: bytes = KEY, *, allow: bool = True) -> None:
    async with custody.admit(Action.ADD_KEY) as permit:
        await custody.adder.add(permit, NewKey(key, "", "", allow))


def open_intents(custody: Custody) -> list[str]:
    """Operations whose intent has not exactly one outcome."""
    entries = custody.entries()
    outcomes = Counter(
        entry.event.intent_index for entry in entries if entry.event.phase == Phase.OUTCOME.value
    )
    return [
        entry.event.operation
        for entry in entries
        if entry.event.phase == Phase.INTENT.value and outcomes[entry.sequence] != 1
    ]


def succeeded(custody: Custody, operation: str) -> list[bool]:
    """Of each outcome or event of this operation, whether it says that it was done."""
    return [
        bool(entry.event.success)
        for entry in custody.entries()
        if entry.event.operation == operation and entry.event.phase != Phase.INTENT.value
    ]


async def settled(custody: Custody) -> None:
    """Outcomes are written; so is what the store was asked to write, since it writes in order."""
    await custody.gate.settle()
    await custody.store.next_sequence()


def nothing_is_held(custody: Custody) -> None:
    assert custody.gate._limits.open_counts() == {"streams": 0, "requests": 0, "unary": 0}
    assert not custody.gate._limits._counts
    assert len(custody.in_flight) == 0
    assert open_intents(custody) == []


@pytest.fixture
def data_keys(monkeypatch: pytest.MonkeyPatch, custody: Custody) -> list[bytearray]:
    """Every data key that custody has in its hands, unwrapped or new."""
    seen: list[bytearray] = []
    new, unwrap = vaults.new_data_key, custody.wrapper.unwrap

    def new_data_key() -> bytearray:
        seen.append(new())
        return seen[-1]

    async def unwrapped(*args: Any, **kwargs: Any) -> bytearray:
        seen.append(await unwrap(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(vaults, "new_data_key", new_data_key)
    monkeypatch.setattr(custody.wrapper, "unwrap", unwrapped)
    return seen


async def test_cancelled_addition(custody: Custody, data_keys: list[bytearray]) -> None:
    """An AddKey that is cancelled anywhere saved its key if and only if the log says so."""
    saved = 0

    async def check() -> None:
        nonlocal saved
        await settled(custody)
        nothing_is_held(custody)
        assert not any(any(key) for key in data_keys)
        row = await custody.store.current(WORKSPACE)
        assert succeeded(custody, "AddKey")[-1] is (row is not None)
        if row is not None:
            saved += 1
            await custody.store.delete(WORKSPACE, row.key_id, replay=None)

    assert await at_every_point(lambda: add(custody), check) > 5
    # At its points after the store was asked, and uncancelled.
    assert saved >= 2


async def test_cancelled_change_of_organisation(custody: Custody) -> None:
    """No cancellation lets a key of another organisation in without the event that says so."""
    await add(custody)
    custody.anthropic.validation = Validation(Verdict.VALID, ORGANIZATION[::-1])
    changes = 0

    async def check() -> None:
        nonlocal changes
        await settled(custody)
        rows = await custody.store.page(WORKSPACE, before_sequence=None, limit=5)
        for row in rows[:-1]:
            changes += 1
            await custody.store.delete(WORKSPACE, row.key_id, replay=None)
        assert len(succeeded(custody, "organization.changed")) == changes

    await at_every_point(lambda: add(custody, OTHER_KEY), check)
    assert changes >= 2


async def test_cancelled_deletion(custody: Custody) -> None:
    """A DeleteKey that is cancelled anywhere deleted its key if and only if the log knows it."""
    custody.deleter._freshness_s = 0.01
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None

    async def delete() -> None:
        async with custody.admit(Action.DELETE_KEY, key_id=row.key_id) as permit:
            await custody.deleter.delete(permit, row.key_id, cancel_in_flight=True, request_id="")

    async def check() -> None:
        nonlocal row
        await settled(custody)
        nothing_is_held(custody)
        gone = await custody.store.current(WORKSPACE) is None
        assert custody.journal.was_deleted(WORKSPACE, row.key_id) is gone
        assert succeeded(custody, "DeleteKey")[-1] is gone
        if gone:
            await add(custody)
            row = await custody.store.current(WORKSPACE)

    assert await at_every_point(delete, check) >= 2


async def test_cancelled_use(custody: Custody, data_keys: list[bytearray]) -> None:
    """A Claude request that is cancelled anywhere leaves no data key, place or open intent."""
    await add(custody)

    async def use() -> None:
        async def nothing() -> Any:
            return
            yield

        task = asyncio.current_task()
        assert task is not None
        async with (
            custody.admit(Action.WITH_KEY) as permit,
            custody.user.send(permit, REQUEST, nothing(), serving=Serving(), scope=CallScope(task)),
        ):
            await asyncio.sleep(0)

    async def check() -> None:
        await custody.gate.settle()
        nothing_is_held(custody)
        assert not any(any(key) for key in data_keys)

    assert await at_every_point(use, check) >= 4


async def test_cancelled_probe(custody: Custody) -> None:
    """A probe that health gives up on has its outcome in the log, as any other."""
    probe = MasterKeyProbe([custody.wrapper], custody.journal, custody.store)

    async def check() -> None:
        await probe.check()  # in order: what was still being written is there after it
        assert open_intents(custody) == []

    assert await at_every_point(probe.check, check) >= 3


async def test_cancelled_often() -> None:
    """However often a caller is cancelled, the work ends, and then the caller is cancelled."""
    going, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await going.wait()
        ended.set()

    async def caller() -> None:
        await uninterrupted(work())
        await asyncio.sleep(0)
        raise AssertionError("not cancelled")

    task = asyncio.create_task(caller())
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    going.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_error_of_work() -> None:
    """What the work raises, its caller gets."""

    async def work() -> None:
        raise HsmUnavailable("gone")

    with pytest.raises(HsmUnavailable):
        await uninterrupted(work())
