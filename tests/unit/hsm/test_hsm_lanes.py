"""Lanes: calls never block the loop, are fair and bounded, and leave no plaintext behind.

The device is a function that waits for an event, so that a test decides when it answers.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from ironwork_hsm import Busy, HsmError, PinRefused, Unavailable
from ironwork_hsm.lanes import Lanes

LONG = 30.0  # seconds; a deadline that no passing test reaches
NOW = 0.01


def translate(error: Exception) -> HsmError:
    return error if isinstance(error, HsmError) else Unavailable("translated")


def lanes_of(
    count: int = 1,
    capacity: int = 8,
    setup: Callable[[], int] = threading.get_ident,
    teardown: Callable[[int], None] = lambda _: None,
) -> Lanes[int]:
    return Lanes(
        setup=setup, teardown=teardown, translate=translate, count=count, capacity=capacity
    )


@contextlib.asynccontextmanager
async def started(lanes: Lanes[int]) -> AsyncIterator[Lanes[int]]:
    await lanes.start(deadline_s=LONG)
    try:
        yield lanes
    finally:
        await lanes.close(deadline_s=LONG)


class Block:
    """A call that stays in the device until it is released."""

    def __init__(self, result: bytearray | None = None) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.result = bytearray() if result is None else result

    def __call__(self, _: int) -> bytearray:
        self.entered.set()
        if not self.release.wait(LONG):
            raise AssertionError("nobody released the block")
        return self.result

    async def is_entered(self) -> None:
        await asyncio.to_thread(self.entered.wait, LONG)


class Wiped:
    """A discard function that one can wait for."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def __call__(self, buffer: bytearray) -> None:
        buffer[:] = bytes(len(buffer))
        self.done.set()

    async def is_done(self) -> bool:
        return await asyncio.to_thread(self.done.wait, LONG)


async def test_a_lane_has_state_of_its_own_made_in_its_thread() -> None:
    """Setup, calls and teardown of a lane all happen in that lane's thread."""
    ended: list[tuple[int, int]] = []
    lanes = lanes_of(3, teardown=lambda made: ended.append((made, threading.get_ident())))
    async with started(lanes):
        here = threading.get_ident()
        for made, called in await asyncio.gather(
            *(lanes.run(lambda s: (s, threading.get_ident()), deadline_s=LONG) for _ in range(8))
        ):
            assert made == called != here
    assert len(ended) == 3
    assert all(made == thread for made, thread in ended)


async def test_the_loop_runs_on_while_a_call_is_in_the_device() -> None:
    """A call in the device does not hold up the event loop."""
    block = Block()
    async with started(lanes_of()) as lanes:
        call = asyncio.create_task(lanes.run(block, deadline_s=LONG))
        await block.is_entered()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not call.done()
        block.release.set()
        assert await call == b""


async def test_first_come_first_served() -> None:
    """Waiting calls are served in the order in which they came."""
    block, order = Block(), list[int]()
    async with started(lanes_of(capacity=100)) as lanes:
        first = asyncio.create_task(lanes.run(block, deadline_s=LONG))
        await block.is_entered()
        calls = [
            asyncio.create_task(lanes.run(lambda _, n=n: order.append(n), deadline_s=LONG))
            for n in range(50)
        ]
        await asyncio.sleep(0)
        block.release.set()
        await asyncio.gather(first, *calls)
    assert order == list(range(50))


async def test_a_full_queue_is_busy() -> None:
    """One call more than the queue holds is refused at once; after that room is made again."""
    block = Block()
    async with started(lanes_of(capacity=2)) as lanes:
        inside = asyncio.create_task(lanes.run(block, deadline_s=LONG))
        await block.is_entered()
        waiting = [
            asyncio.create_task(lanes.run(lambda _: "served", deadline_s=LONG)) for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="busy"):
            await lanes.run(lambda _: "never", deadline_s=LONG)
        block.release.set()
        assert await asyncio.gather(*waiting) == ["served", "served"]
        await inside
        assert await lanes.run(lambda _: "again", deadline_s=LONG) == "again"


async def test_a_deadline_covers_the_device() -> None:
    """A call whose device does not answer ends as Unavailable, and its late result is wiped."""
    block, wiped = Block(bytearray(b"plaintext")), Wiped()
    async with started(lanes_of()) as lanes:
        with pytest.raises(Unavailable, match=r"within 0\.01 s"):
            await lanes.run(block, deadline_s=NOW, discard=wiped)
        block.release.set()
        assert await wiped.is_done()
        assert block.result == bytes(9)


async def test_a_deadline_covers_the_waiting() -> None:
    """A call that is still waiting at its deadline is Unavailable and never reaches the device."""
    block, calls = Block(), list[int]()
    async with started(lanes_of()) as lanes:
        inside = asyncio.create_task(lanes.run(block, deadline_s=LONG))
        await block.is_entered()
        with pytest.raises(Unavailable, match="did not answer"):
            await lanes.run(calls.append, deadline_s=NOW)
        block.release.set()
        await inside
        await lanes.run(lambda _: None, deadline_s=LONG)
    assert calls == []


async def test_cancelled_while_in_the_device() -> None:
    """A cancelled caller leaves at once; the result that comes later is wiped."""
    block, wiped = Block(bytearray(b"plaintext")), Wiped()
    async with started(lanes_of()) as lanes:
        call = asyncio.create_task(lanes.run(block, deadline_s=LONG, discard=wiped))
        await block.is_entered()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        block.release.set()
        assert await wiped.is_done()
        assert block.result == bytes(9)
        assert await lanes.run(lambda _: "usable", deadline_s=LONG) == "usable"


async def test_cancelled_while_waiting() -> None:
    """A call that is cancelled in the queue is never made."""
    block, calls = Block(), list[int]()
    async with started(lanes_of()) as lanes:
        inside = asyncio.create_task(lanes.run(block, deadline_s=LONG))
        await block.is_entered()
        waiting = asyncio.create_task(lanes.run(calls.append, deadline_s=LONG))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        block.release.set()
        await inside
        await lanes.run(lambda _: None, deadline_s=LONG)
    assert calls == []


async def test_cancelled_between_answer_and_delivery() -> None:
    """A result that has arrived but was not yet taken when its caller is cancelled is wiped."""
    loop, wiped, result = asyncio.get_running_loop(), Wiped(), bytearray(b"plaintext")
    async with started(lanes_of()) as lanes:
        call: asyncio.Task[bytearray] | None = None

        def answer(_: int) -> bytearray:
            return result

        original = loop.call_soon_threadsafe

        def deliver_then_cancel(callback: Callable[..., object], *args: object) -> object:
            def both() -> None:
                # The delivery, and a cancellation before the task has woken up to take it.
                callback(*args)
                if call is not None:
                    call.cancel()

            return original(both)

        loop.call_soon_threadsafe = deliver_then_cancel  # type: ignore[assignment,method-assign]
        try:
            call = asyncio.create_task(lanes.run(answer, deadline_s=LONG, discard=wiped))
            with pytest.raises(asyncio.CancelledError):
                await call
        finally:
            call = None
            loop.call_soon_threadsafe = original  # type: ignore[method-assign]
        assert result == bytes(9)


async def test_results_that_come_together_wake_the_loop_once() -> None:
    """What lanes finish while the loop is busy costs one wake-up of it, not one each."""
    loop, last, wakes = asyncio.get_running_loop(), threading.Event(), list[int]()
    async with started(lanes_of(capacity=100)) as lanes:
        original = loop.call_soon_threadsafe

        def counted(callback: Callable[..., object], *args: object) -> object:
            wakes.append(1)
            return original(callback, *args)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment,method-assign]
        try:
            calls = [
                asyncio.create_task(lanes.run(lambda _, n=n: n, deadline_s=LONG)) for n in range(50)
            ]
            ending = asyncio.create_task(lanes.run(lambda _: last.set(), deadline_s=LONG))
            await asyncio.sleep(0)
            # Blocks the loop: until the last call is in the device nothing is delivered.
            last.wait(LONG)
            assert await asyncio.gather(*calls) == list(range(50))
            await ending
        finally:
            loop.call_soon_threadsafe = original  # type: ignore[method-assign]
    # The first result's, and perhaps one for what came while those were handed on.
    assert len(wakes) <= 3


async def test_errors_are_translated_and_carry_nothing() -> None:
    """What a call raises becomes ours, without the foreign error behind it."""

    def fail(_: int) -> None:
        raise ZeroDivisionError("secret text")

    async with started(lanes_of()) as lanes:
        with pytest.raises(Unavailable, match="translated") as caught:
            await lanes.run(fail, deadline_s=LONG)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None
        assert await lanes.run(lambda _: "usable", deadline_s=LONG) == "usable"


async def test_a_failed_first_lane_is_not_repeated() -> None:
    """Where the first lane's PIN is refused no other lane tries it, and the reason is kept."""
    tries = []

    def setup() -> int:
        tries.append(1)
        raise PinRefused("no")

    lanes = lanes_of(4, setup=setup)
    with pytest.raises(PinRefused):
        await lanes.start(deadline_s=LONG)
    await lanes.close(deadline_s=LONG)
    assert len(tries) == 1


async def test_lanes_that_had_started_end_when_a_later_one_fails() -> None:
    """A failed start leaves no lane behind."""
    made, ended = [], []

    def setup() -> int:
        made.append(1)
        if len(made) == 3:
            raise Unavailable("no session left")
        return len(made)

    lanes = lanes_of(4, setup=setup, teardown=ended.append)
    with pytest.raises(Unavailable, match="no session left"):
        await lanes.start(deadline_s=LONG)
    await lanes.close(deadline_s=LONG)
    assert sorted(ended) == [1, 2]


async def test_a_setup_that_hangs() -> None:
    """Opening has a deadline; a lane that opens after it leaves the device again."""
    go, ended = threading.Event(), threading.Event()

    def setup() -> int:
        go.wait(LONG)
        return 1

    lanes = lanes_of(setup=setup, teardown=lambda _: ended.set())
    with pytest.raises(Unavailable, match="did not open"):
        await lanes.start(deadline_s=NOW)
    go.set()
    await lanes.close(deadline_s=LONG)
    assert ended.is_set()


async def test_close_turns_waiting_calls_away_and_finishes_those_inside() -> None:
    """close lets the call in the device finish and refuses those that wait."""
    block = Block(bytearray(b"done"))
    lanes = lanes_of()
    await lanes.start(deadline_s=LONG)
    inside = asyncio.create_task(lanes.run(block, deadline_s=LONG))
    await block.is_entered()
    waiting = asyncio.create_task(lanes.run(lambda _: "never", deadline_s=LONG))
    await asyncio.sleep(0)
    closing = asyncio.create_task(lanes.close(deadline_s=LONG))
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    block.release.set()
    assert await inside == b"done"
    await closing
    with pytest.raises(Unavailable, match="closed"):
        await lanes.run(lambda _: None, deadline_s=LONG)


async def test_close_does_not_wait_for_a_hanging_device_for_ever() -> None:
    """A lane that hangs is left behind at close's deadline."""
    block = Block()
    lanes = lanes_of()
    await lanes.start(deadline_s=LONG)
    with pytest.raises(Unavailable):
        await lanes.run(block, deadline_s=NOW)
    await lanes.close(deadline_s=NOW)
    block.release.set()
    await lanes.close(deadline_s=LONG)


def test_lanes_serve_one_loop_after_another() -> None:
    """Lanes belong to no event loop: they may be opened, used and closed in different ones."""
    lanes = lanes_of()
    asyncio.run(lanes.start(deadline_s=LONG))
    assert asyncio.run(lanes.run(lambda _: "served", deadline_s=LONG)) == "served"
    asyncio.run(lanes.close(deadline_s=LONG))


def test_a_result_for_a_closed_loop_is_wiped() -> None:
    """Where the caller's loop is gone, its result is wiped by the lane."""
    block, wiped, lanes = Block(bytearray(b"plaintext")), Wiped(), lanes_of()
    asyncio.run(lanes.start(deadline_s=LONG))

    async def give_up() -> None:
        with pytest.raises(Unavailable):
            await lanes.run(block, deadline_s=NOW, discard=wiped)

    asyncio.run(give_up())
    block.release.set()
    assert wiped.done.wait(LONG)
    assert block.result == bytes(9)
    asyncio.run(lanes.close(deadline_s=LONG))


@pytest.mark.parametrize(("count", "capacity"), [(0, 1), (1, 0)])
def test_there_is_at_least_one_lane_and_one_place(count: int, capacity: int) -> None:
    """Lanes and queue have at least one place."""
    with pytest.raises(ValueError, match="at least 1"):
        lanes_of(count, capacity)
