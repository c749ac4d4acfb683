"""Thread lanes: a fixed number of threads, each with device state of its own, that event loops
hand calls to without ever blocking.

Calls wait in one queue, first in, first out, and each has a deadline that covers the waiting. A
caller that is cancelled or out of time leaves at once; its call, once it runs or has run, has its
result discarded (wiped), wherever that result had got to.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ironwork_hsm.interface import Busy, HsmError, Unavailable

State = TypeVar("State")
Result = TypeVar("Result")


def keep(_: object) -> None:
    """The discard function of results that hold nothing secret."""


class _Mailbox:
    """Where lanes put what one event loop waits for.

    The loop is woken once for everything that has come since it last looked: to wake it is a system
    call, in which a lane gives up the interpreter's lock and then has to wait for it again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # Written by lanes, emptied by the loop; bounded by the calls that are under way.
        self._ended: collections.deque[tuple[_Job[Any, Any], Any, HsmError | None]] = (
            collections.deque()
        )
        # Whether the loop will look. Two lanes may both find that it will not: then it looks twice.
        self._called = False

    def put(self, job: "_Job[Any, Any]", value: Any, error: HsmError | None) -> None:
        """From any thread."""
        self._ended.append((job, value, error))
        if self._called and not self.loop.is_closed():
            return
        self._called = True
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed; nobody waits any more
            while entry := self._next():
                entry[0].drop(entry[1], entry[2])

    def _deliver(self) -> None:
        # First, so that what comes from now on calls again.
        self._called = False
        while entry := self._next():
            entry[0].end(entry[1], entry[2])

    def _next(self) -> "tuple[_Job[Any, Any], Any, HsmError | None] | None":
        try:
            return self._ended.popleft()
        except IndexError:
            return None


class _Job(Generic[State, Result]):
    """One call on its way. `future` belongs to its loop; `run` is called by a lane."""

    __slots__ = ("_discard", "_function", "_mailbox", "future")

    def __init__(
        self,
        function: Callable[[State], Result],
        discard: Callable[[Result], None],
        mailbox: _Mailbox,
    ) -> None:
        self.future: asyncio.Future[Result] = mailbox.loop.create_future()
        self._mailbox = mailbox
        self._function: Callable[[State], Result] | None = function
        self._discard = discard

    def run(self, state: State, translate: Callable[[Exception], HsmError]) -> None:
        # Read once: the loop may abandon the job at any moment. If it does so after this line,
        # the call is made and its result discarded.
        function = self._function
        if function is None:
            return
        try:
            value = function(state)
        except Exception as error:  # noqa: BLE001  the seam: whatever it is becomes an HsmError
            self._mailbox.put(self, None, translate(error))
        else:
            self._mailbox.put(self, value, None)

    def fail(self, error: HsmError) -> None:
        """From any thread: end the call with this, unless it has ended."""
        self._mailbox.put(self, None, error)

    def expire(self, deadline_s: float) -> None:
        """In the loop: the call is late. Do not start it, and discard what comes."""
        self._function = None
        self.end(None, Unavailable(f"The HSM did not answer within {deadline_s:g} s."))

    def end(self, value: Any, error: HsmError | None) -> None:
        """In the loop: hand on what came, where somebody still waits for it."""
        if self.future.done():
            self.drop(value, error)
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)

    def drop(self, value: Any, error: HsmError | None) -> None:
        """Discard what came."""
        if error is None:
            self._discard(value)

    def abandon(self) -> None:
        """The caller has gone: do not start, and discard what has come."""
        self._function = None
        if not self.future.done():
            self.future.cancel()
        elif not self.future.cancelled() and self.future.exception() is None:
            self._discard(self.future.result())


class Lanes(Generic[State]):
    """The threads. setup makes a lane's state in its own thread, teardown ends it there."""

    def __init__(
        self,
        *,
        setup: Callable[[], State],
        teardown: Callable[[State], None],
        translate: Callable[[Exception], HsmError],
        count: int,
        capacity: int,
    ) -> None:
        if count < 1 or capacity < 1:
            raise ValueError("lanes and queue must be at least 1")
        self._setup = setup
        self._teardown = teardown
        self._translate = translate
        self._count = count
        self._capacity = capacity
        # Bounded by `run`, the only place that puts calls in. None ends a lane.
        self._jobs: queue.SimpleQueue[_Job[State, Any] | None] = queue.SimpleQueue()
        # One for each lane that was started; done when its thread has left the device.
        self._stopped: list[concurrent.futures.Future[None]] = []
        self._closed = threading.Event()
        # That of the loop which called last.
        self._mailbox: _Mailbox | None = None

    async def start(self, *, deadline_s: float) -> None:
        """Start all lanes. Raises what the first failing setup raised, or Unavailable; what had
        started until then ends by itself, and close waits for it.

        One after the other: if the first one's PIN is refused, no other lane may try it again.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._start_lane(0)
                for index in range(1, self._count):
                    await self._start_lane(index)
        except TimeoutError:
            self._end()
            raise Unavailable(f"The HSM did not open within {deadline_s:g} s.") from None
        except BaseException:
            self._end()
            raise

    async def run(
        self,
        function: Callable[[State], Result],
        *,
        deadline_s: float,
        discard: Callable[[Result], None] = keep,
    ) -> Result:
        """Call function on a lane and return its result.

        Raises Busy when the queue is full, Unavailable when the deadline (seconds, waiting
        included) has passed or the lanes are closed, and otherwise what translate makes of its
        exception.
        discard receives a result that nobody takes any more.
        """
        if self._closed.is_set():
            raise Unavailable("The HSM backend is closed.")
        if self._jobs.qsize() >= self._capacity:
            raise Busy("The HSM is busy: too many calls are waiting for it.")
        mailbox = self._mailbox_here()
        job: _Job[State, Result] = _Job(function, discard, mailbox)
        self._jobs.put(job)
        # A timer of our own: asyncio.timeout costs several times as much.
        timer = mailbox.loop.call_later(deadline_s, job.expire, deadline_s)
        try:
            return await job.future
        except BaseException:
            job.abandon()
            raise
        finally:
            timer.cancel()

    async def close(self, *, deadline_s: float) -> None:
        """End the lanes after the calls they are in; calls that still wait get Unavailable.

        A lane that hangs in its device is left behind after the deadline: its thread is a daemon.
        """
        self._end()
        if self._stopped:
            # asyncio.wait, since it leaves what it waits for alone when the time is over.
            stopped = [asyncio.wrap_future(future) for future in self._stopped]
            await asyncio.wait(stopped, timeout=deadline_s)

    async def _start_lane(self, index: int) -> None:
        ready: _Job[None, None] = _Job(keep, keep, self._mailbox_here())
        stopped: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._stopped.append(stopped)
        threading.Thread(
            target=self._work,
            args=(ready, stopped),
            name=f"ironwork-hsm-lane-{index}",
            daemon=True,
        ).start()
        await ready.future

    def _mailbox_here(self) -> _Mailbox:
        loop = asyncio.get_running_loop()
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = _Mailbox(loop)
        return mailbox

    def _end(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while (job := self._jobs.get_nowait()) is not None:
                job.fail(Unavailable("The HSM backend is closed."))
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self, ready: _Job[None, None], stopped: concurrent.futures.Future[None]) -> None:
        """A lane's whole life, in its own thread."""
        try:
            state = self._setup()
        except Exception as error:  # noqa: BLE001  the seam: whatever it is becomes an HsmError
            ready.fail(self._translate(error))
        else:
            ready.run(None, self._translate)
            self._serve(state)
            # A device that fails while it is being left has nothing more to tell us.
            with contextlib.suppress(Exception):
                self._teardown(state)
        stopped.set_result(None)

    def _serve(self, state: State) -> None:
        while (job := self._jobs.get()) is not None:
            job.run(state, self._translate)
            # Nothing of a call stays referenced while the lane waits for the next.
            del job
