"""Deleting a key: it stays dead, on record, and what it served can be ended."""

import asyncio
import uuid

import pytest

from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_server.core.errors import (
    InvalidRequest,
    NotFound,
    PreconditionFailed,
)
from ironwork_server.core.values import Action
from ironwork_server.custody.delete_key import Deleted, KeyDeleter
from ironwork_server.custody.in_flight import CallScope, InFlight
from ironwork_server.custody.masked import MaskedKey
from ironwork_server.store import TraceRemains

from .conftest import OTHER_KEY, WORKSPACE, Custody
from .test_add_key import add
from .test_use_key import use


async def delete(
    custody: Custody, key: MaskedKey, *, cancel: bool = False, request_id: str = ""
) -> Deleted:
    """DeleteKey as the RPC layer calls it."""
    key_id = key.name.rpartition("/")[2]
    async with custody.admit(Action.DELETE_KEY, key_id=key_id) as permit:
        return await custody.deleter.delete(
            permit, key_id, cancel_in_flight=cancel, request_id=request_id
        )


async def test_a_key_whose_deletion_is_on_record_stays_dead(custody: Custody) -> None:
    """A database restored from before a deletion does not bring the key back."""
    added = await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    await delete(custody, added)
    await custody.store.add(row, replay=None, max_keys=5, allow_different_organization=False)
    with pytest.raises(PreconditionFailed) as refused:
        await use(custody)
    assert refused.value.reason == "KEY_WAS_DELETED"


async def test_deletion_says_which_key_is_current_now(custody: Custody) -> None:
    """Deleting the newest brings back the one before; deleting the last leaves none."""
    first = await add(custody)
    second = await add(custody, OTHER_KEY)
    deleted = await delete(custody, second)
    assert deleted.current is not None
    assert deleted.current.name == first.name
    assert (await delete(custody, first)).current is None


async def test_an_unknown_key_is_not_found(custody: Custody) -> None:
    """Within one's own workspace, a missing key is said to be missing."""
    added = await add(custody)
    await delete(custody, added)
    with pytest.raises(NotFound):
        await delete(custody, added)


async def test_a_repeated_deletion_gives_the_first_answer(custody: Custody) -> None:
    """The same request_id replays; for another key it is refused."""
    first, second = await add(custody), await add(custody, OTHER_KEY)
    request_id = str(uuid.uuid4())
    answer = await delete(custody, second, request_id=request_id)
    assert await delete(custody, second, request_id=request_id) == answer
    with pytest.raises(InvalidRequest) as refused:
        await delete(custody, first, request_id=request_id)
    assert refused.value.reason == "REQUEST_ID_REUSED"
    last = await delete(custody, first, request_id=str(uuid.uuid4()))
    assert last.current is None


async def test_a_deletion_whose_trace_remains_has_taken_effect(custody: Custody) -> None:
    """Where only the erasing failed, the call fails, but the key is dead and stays so."""
    added = await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    real = custody.store.delete

    async def half(*arguments: object, **more: object) -> object:
        await real(*arguments, **more)  # type: ignore[arg-type]
        raise TraceRemains

    custody.store.delete = half  # type: ignore[method-assign,assignment]
    with pytest.raises(TraceRemains):
        await delete(custody, added)
    assert custody.journal.was_deleted(WORKSPACE, row.key_id)
    await custody.store.add(row, replay=None, max_keys=5, allow_different_organization=False)
    with pytest.raises(PreconditionFailed):
        await use(custody)


async def test_deletion_needs_no_hsm(custody: Custody) -> None:
    """A key can be deleted while the HSM is away, also with a request_id."""
    added = await add(custody)
    custody.wrapper.fault = HsmUnavailable("gone")
    await delete(custody, added, request_id=str(uuid.uuid4()))


async def test_deletion_ends_what_is_in_flight_if_asked(custody: Custody) -> None:
    """cancel_in_flight ends the requests that this key serves, with a reason, and no others."""
    added = await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    waiting = asyncio.ensure_future(asyncio.Event().wait())
    scope = CallScope(waiting)  # type: ignore[arg-type]
    with custody.in_flight.serving(scope) as register:
        register((WORKSPACE, row.key_id))
        assert (await delete(custody, added, cancel=True)).cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert scope.reason == "KEY_DELETED"
    assert len(custody.in_flight) == 0


async def test_deletion_returns_when_older_reads_have_expired(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeleteKey waits for the freshness bound, and a little more, after the row is gone; also where
    it finds none, since another call may be deleting it.
    """
    added = await add(custody)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        assert await custody.store.current(WORKSPACE) is None
        slept.append(seconds)

    deleter = KeyDeleter(store=custody.store, in_flight=custody.in_flight, freshness_s=1.0)
    monkeypatch.setattr("ironwork_server.custody.delete_key.asyncio.sleep", sleep)
    key_id = added.name.rpartition("/")[2]
    async with custody.admit(Action.DELETE_KEY) as permit:
        await deleter.delete(permit, key_id, cancel_in_flight=False, request_id="")
    assert slept == [1.05]
    with pytest.raises(NotFound):
        async with custody.admit(Action.DELETE_KEY) as permit:
            await deleter.delete(permit, key_id, cancel_in_flight=False, request_id="")
    assert slept == [1.05, 1.05]


async def test_a_call_is_registered_under_its_last_key_only() -> None:
    """A request that was prepared again moves from its first key to its second."""
    registry = InFlight()
    done = asyncio.ensure_future(asyncio.sleep(0))
    other = CallScope(asyncio.ensure_future(asyncio.Event().wait()))  # type: ignore[arg-type]
    scope = CallScope(done)
    with registry.serving(scope) as register, registry.serving(other) as register_other:
        register(("acme", "a"))
        register_other(("acme", "a"))
        register(("acme", "b"))
        assert len(registry) == 2
        assert registry.end(("acme", "nobody"), "KEY_DELETED") == 0
        await done
        assert registry.end(("acme", "b"), "KEY_DELETED") == 1
        assert scope.reason is None, "a call that is over is not ended again"
        other.end("FIRST")
        other.end("SECOND")
        assert other.reason == "FIRST"
    assert len(registry) == 0
