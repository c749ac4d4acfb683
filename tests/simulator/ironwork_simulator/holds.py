"""Holds: places where answers wait until a test lets them go, from whichever thread it runs in."""

import asyncio
import concurrent.futures
import threading

from ironwork_simulator.plain import Invalid

_MAX_HOLDS = 1_000
# A hold that nobody releases ends here; tests release theirs long before.
HOLD_LIMIT_S = 600.0


class Hold:
    """A gate with a name. Requests whose behaviour names it wait; once released, it stays open."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._released = False
        self._waiting: set[concurrent.futures.Future[None]] = set()

    @property
    def released(self) -> bool:
        return self._released

    def release(self) -> None:
        """Let all who wait go on, and all who come later pass."""
        with self._lock:
            self._released = True
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    async def wait(self) -> None:
        """Pass when released, at the latest after HOLD_LIMIT_S."""
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            if self._released:
                return
            self._waiting.add(future)
        try:
            await asyncio.wait_for(asyncio.wrap_future(future), HOLD_LIMIT_S)
        finally:
            with self._lock:
                self._waiting.discard(future)


class Holds:
    """The holds by name; one that a behaviour names first comes into being then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: dict[str, Hold] = {}

    def get(self, name: str | None = None) -> Hold:
        """The hold of this name, or a new one with a name of its own."""
        with self._lock:
            name = f"hold-{len(self._holds) + 1}" if name is None else name
            if name not in self._holds and len(self._holds) >= _MAX_HOLDS:
                raise Invalid(f"at most {_MAX_HOLDS} holds can exist; clear() forgets them")
            return self._holds.setdefault(name, Hold(name))

    def clear(self) -> None:
        """Release and forget all."""
        with self._lock:
            holds, self._holds = list(self._holds.values()), {}
        for hold in holds:
            hold.release()
