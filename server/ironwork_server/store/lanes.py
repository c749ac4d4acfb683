"""Threads that own a connection each, and take jobs from one bounded queue.

A job runs whole on its thread, so that a cancelled await never leaves half of one: it happened,
or it did not. Whoever awaits it gets its result, its error, or StoreBusy at the deadline.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from ironwork_server.core.errors import IronworkError
from ironwork_server.store.errors import (
    StoreBusy,
    StoreCorrupt,
    StoreFailed,
    StoreUnavailable,
    StoreUndecided,
    seam,
)

T = TypeVar("T")

# A write that waited for a lock until its deadline says so itself, a moment later, in seconds.
_GRACE = 0.5


class Closeable(Protocol):
    def close(self) -> None: ...


R = TypeVar("R", bound=Closeable)

# A job gets the thread's resource and its deadline (time.monotonic()).
Job = Callable[[R, float], T]
_Item = tuple[Job[R, Any], "Future[Any]", float]


class Lane(Generic[R]):
    """threads: how many; each opens a resource of its own when its first job comes (within that
    job's deadline), and again after an error of the store. capacity: how many jobs may wait.
    writes: a job that did not end, or in which the device failed, may have been done.
    """

    def __init__(
        self,
        name: str,
        open_: Callable[[float], R],
        *,
        threads: int,
        capacity: int,
        writes: bool = False,
    ) -> None:
        self._open = open_
        self._writes = writes
        self._capacity = capacity
        # Jobs, and one None for each thread at the end.
        self._queue: SimpleQueue[_Item[R] | None] = SimpleQueue()
        self._closed = False
        self._threads = [
            # A daemon: a hung disk must not keep the process from ending.
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, job: Job[R, T], timeout: float, afterwards: float = 0.0) -> T:
        """Run job on a thread; its deadline is timeout seconds from now, and it may take
        afterwards seconds more for what follows its transaction. Raises what it raised;
        StoreBusy where the lane is closed or full, or the time has passed before the job began or
        while it read; StoreUndecided for a write that had begun (done or not, never half).
        """
        if self._closed or self._queue.qsize() >= self._capacity:
            raise StoreBusy
        future: Future[T] = Future()
        self._queue.put((job, future, time.monotonic() + timeout))
        grace = _GRACE if self._writes else 0.0
        clock = asyncio.timeout(timeout + afterwards + grace)
        try:
            async with clock:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if not clock.expired():
                raise
            # What has not begun now never will.
            begun = not future.cancel()
            raise (StoreUndecided if begun and self._writes else StoreBusy) from None

    async def close(self, timeout: float) -> None:
        """Let the waiting jobs finish, then end the threads; at most timeout seconds."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        await asyncio.to_thread(self._join, time.monotonic() + timeout)

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        resource: R | None = None
        while (item := self._queue.get()) is not None:
            resource = self._perform(item, resource)
            # Nothing of a job outlives it here.
            del item
        _close(resource)

    def _perform(self, item: _Item[R], resource: R | None) -> R | None:
        """Do one job; returns the resource that the next one uses."""
        job, future, deadline = item
        if not future.set_running_or_notify_cancel():
            return resource
        try:
            with self._undecided(), seam():
                if time.monotonic() >= deadline:
                    raise StoreBusy  # noqa: TRY301 - the one place that answers is below
                resource = resource or self._open(deadline)
                result = job(resource, deadline)
        except BaseException as error:  # noqa: BLE001 - a thread's end: whoever awaits gets it
            if isinstance(error, (StoreUnavailable, StoreCorrupt)):
                # What state the connection is in is not known: the next job opens another.
                _close(resource)
                resource = None
            future.set_exception(error)
        else:
            future.set_result(result)
        return resource

    @contextlib.contextmanager
    def _undecided(self) -> Iterator[None]:
        """A commit whose sync failed may be found whole after a crash."""
        try:
            yield
        except StoreFailed:
            if self._writes:
                raise StoreUndecided from None
            raise


def _close(resource: Closeable | None) -> None:
    """Close what may be broken: there is nobody to tell, and nothing is lost by it."""
    if resource is not None:
        with contextlib.suppress(IronworkError), seam():
            resource.close()
