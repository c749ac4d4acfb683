"""Blocking work in a thread that nobody has to wait for: a disk may hang for ever."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def on_a_thread(
    work: Callable[[], T], *, name: str, ended: Callable[[], None]
) -> asyncio.Future[T]:
    """Begin it; its result or error, which is TimeoutError where there is no thread to be had now.
    ended: called by the thread when it is over, also where nobody waits for the result any more.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T may be None itself

    def act() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001  it is raised where it is awaited
            error = raised
        ended()
        # RuntimeError: the loop is closed, so nobody waits there any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    try:
        # A thread of an executor would keep the process from ending.
        threading.Thread(target=act, name=name, daemon=True).start()
    except RuntimeError:
        # The process, or its container, has as many threads as it may: this passes.
        ended()
        future.set_exception(TimeoutError())
    return future


class Aside:
    """One call at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Set on the loop when a call begins, cleared by its thread.
        self.busy = False

    async def idle(self, *, deadline_s: float) -> None:
        """Wait for a call that was given up on. Raises TimeoutError."""
        async with asyncio.timeout(deadline_s):
            while self.busy:  # noqa: ASYNC110  its thread may outlive any loop that it would tell
                await asyncio.sleep(0.005)

    async def run(self, work: Callable[[], T], *, deadline_s: float) -> T:
        """The call's result or error. Raises TimeoutError, at once where an earlier call still
        hangs (`busy`).
        """
        if self.busy:
            raise TimeoutError
        self.busy = True
        future = on_a_thread(work, name=self._name, ended=self._ended)
        async with asyncio.timeout(deadline_s):
            return await future

    def _ended(self) -> None:
        self.busy = False
