"""What lets a call in must hold until its end."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ironwork_server.core.errors import PermissionDenied, Unauthenticated
from ironwork_server.core.values import Action, Principal, Resource
from ironwork_server.rpc import grant
from ironwork_server.rpc.grant import EXPIRED, REVOKED, UNTRUSTED, EitherChange, Grants, Hold

DEADLINE_S = 20.0


class Source:
    """Something that is reloaded, as the test says."""

    def __init__(self) -> None:
        self.generation = 0
        self._changed = asyncio.Event()

    def change(self) -> None:
        self.generation += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_newer(self, generation: int) -> int:
        while self.generation <= generation:
            await self._changed.wait()
        return self.generation


async def test_either_source_is_a_change() -> None:
    """A waiter hears of each source, also of what changed before it began to wait."""
    first, second = Source(), Source()
    either = EitherChange([first, second])
    seen = either.generation
    for source in (second, first, first):
        waiting = asyncio.ensure_future(either.wait_newer(seen))
        await asyncio.sleep(0)
        assert not waiting.done()
        source.change()
        async with asyncio.timeout(DEADLINE_S):
            seen = await waiting
    second.change()
    assert await either.wait_newer(seen) == seen + 1


async def test_a_clock_that_is_set_ends_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate ends when the wall clock says so, also where that was set forward meanwhile."""
    monkeypatch.setattr(grant, "LOOK_S", 0.01)
    now = datetime(2026, 11, 1, tzinfo=UTC)
    principal = Principal("spiffe://test/a", "agent", "acme", now + timedelta(hours=1))
    anybody: Any = SimpleNamespace(trusts=lambda _: True, permits=lambda *_: True)
    grants = Grants(peers=anybody, gate=anybody, changes=Source(), now=lambda: now)
    lost = asyncio.ensure_future(grants.lost(anybody, principal, Action.WITH_KEY, Resource("acme")))
    await asyncio.sleep(0)
    now += timedelta(hours=2)
    async with asyncio.timeout(DEADLINE_S):
        assert await lost == EXPIRED


async def held(lost: "asyncio.Future[str]") -> None:
    """A call that waits for ever, while it may."""

    async def wait() -> str:
        return await lost

    hold = Hold()
    async with hold.endings(), hold.until(asyncio.ensure_future(wait())):
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("reason", "error"), [(UNTRUSTED, Unauthenticated), (REVOKED, PermissionDenied)]
)
async def test_a_call_ends_when_what_let_it_in_is_lost(reason: str, error: type[Exception]) -> None:
    """The reason becomes the call's error."""
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    call = asyncio.ensure_future(held(lost))
    await asyncio.sleep(0)
    lost.set_result(reason)
    with pytest.raises(error):
        async with asyncio.timeout(DEADLINE_S):
            await call


async def test_a_watcher_that_breaks_ends_its_call() -> None:
    """Where nobody looks any more whether a call may go on, it does not."""
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    call = asyncio.ensure_future(held(lost))
    await asyncio.sleep(0)
    lost.set_exception(RuntimeError("unforeseen"))
    with pytest.raises(PermissionDenied):
        async with asyncio.timeout(DEADLINE_S):
            await call


async def test_a_call_that_its_client_leaves_is_cancelled_as_ever() -> None:
    """A cancellation without a reason is nobody's refusal, and its watcher ends with it."""
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    call = asyncio.ensure_future(held(lost))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert lost.cancelled()
