"""Lanes: threads that own a connection, fed by a bounded queue."""

import asyncio
import threading

import pytest

from ironwork_server.store.errors import StoreBusy, StoreFailed, StoreUndecided
from ironwork_server.store.lanes import Lane


class Resource:
    def __init__(self, log: list["Resource"]) -> None:
        self.closed = False
        log.append(self)

    def close(self) -> None:
        self.closed = True


class Gate:
    """A job that says when it began and waits until it may go on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.go = threading.Event()
        self.done = False

    def __call__(self, resource: Resource, deadline: float) -> None:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.go.wait(30)
        self.done = True


async def test_a_full_lane_refuses_at_once() -> None:
    """Past its capacity a lane takes no more: the call fails at once and the job is not done."""
    opened: list[Resource] = []
    lane = Lane("lane", lambda _: Resource(opened), threads=1, capacity=2)
    gate = Gate()
    first = asyncio.create_task(lane.run(gate, 30))
    await gate.begun.wait()
    waiting = [asyncio.create_task(lane.run(lambda *_: 1, 30)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreBusy):
        await lane.run(lambda *_: 1, 30)
    gate.go.set()
    await first
    assert await asyncio.gather(*waiting) == [1, 1]
    await lane.close(30)
    assert [resource.closed for resource in opened] == [True]


async def test_a_deadline_ends_the_wait_but_not_the_job() -> None:
    """At its deadline a call fails as StoreBusy; a job that had begun still ends whole, and one
    that had not is never begun.
    """
    opened: list[Resource] = []
    lane = Lane("lane", lambda _: Resource(opened), threads=1, capacity=9)
    gate, late = Gate(), Gate()
    first = asyncio.create_task(lane.run(gate, 0.05))
    await gate.begun.wait()
    with pytest.raises(StoreBusy):
        await lane.run(late, 0.01)
    with pytest.raises(StoreBusy):
        await first
    gate.go.set()
    assert await lane.run(lambda *_: "usable", 30) == "usable"
    await lane.close(30)
    assert gate.done
    assert not late.begun.is_set()


async def test_a_write_that_had_begun_is_undecided() -> None:
    """Where jobs write, one that had begun at its deadline, or in which the device failed, is
    neither done nor failed; one that had not begun is not done.
    """
    lane = Lane("lane", lambda _: Resource([]), threads=1, capacity=9, writes=True)
    gate, late = Gate(), Gate()
    first = asyncio.create_task(lane.run(gate, 0.05))
    await gate.begun.wait()
    with pytest.raises(StoreBusy):
        await lane.run(late, 0.01)
    with pytest.raises(StoreUndecided) as undecided:
        await first
    assert undecided.value.reason == "STORE_UNDECIDED"
    gate.go.set()

    def fail(resource: Resource, deadline: float) -> None:
        raise StoreFailed

    with pytest.raises(StoreUndecided):
        await lane.run(fail, 30)
    await lane.close(30)
    assert gate.done
    assert not late.begun.is_set()


async def test_a_cancelled_call_that_waited_is_not_done() -> None:
    """A call cancelled while its job waited is never begun."""
    lane = Lane("lane", lambda _: Resource([]), threads=1, capacity=9)
    gate, cancelled = Gate(), Gate()
    first = asyncio.create_task(lane.run(gate, 30))
    await gate.begun.wait()
    second = asyncio.create_task(lane.run(cancelled, 30))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    gate.go.set()
    await first
    await lane.close(30)
    assert second.cancelled()
    assert not cancelled.begun.is_set()


async def test_an_error_of_the_store_opens_a_new_connection() -> None:
    """After an error of the store the connection is closed and the next job gets another; after
    any other error it is kept.
    """
    opened: list[Resource] = []
    lane = Lane("lane", lambda _: Resource(opened), threads=1, capacity=9)

    def fail(error: Exception) -> None:
        raise error

    for error in (LookupError("the caller's"), TimeoutError("the caller's"), StoreFailed()):
        with pytest.raises(type(error)):
            await lane.run(lambda *_, error=error: fail(error), 30)
    assert [resource.closed for resource in opened] == [True]
    assert await lane.run(lambda resource, _: resource.closed, 30) is False
    assert len(opened) == 2
    await lane.close(30)


async def test_a_closed_lane_refuses() -> None:
    """A closed lane takes no job, and closing it again is nothing."""
    lane = Lane("lane", lambda _: Resource([]), threads=2, capacity=9)
    await lane.close(30)
    await lane.close(30)
    with pytest.raises(StoreBusy):
        await lane.run(lambda *_: 1, 30)


async def test_close_is_bounded() -> None:
    """Closing waits for a job that hangs no longer than it was told."""
    lane = Lane("lane", lambda _: Resource([]), threads=1, capacity=9)
    gate = Gate()
    hanging = asyncio.create_task(lane.run(gate, 30))
    await gate.begun.wait()
    await lane.close(0.01)
    assert not hanging.done()
    gate.go.set()
    await hanging
