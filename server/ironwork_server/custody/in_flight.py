"""Which Claude requests are under way with which key, so that a deletion can end them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

KeyRef = tuple[str, str]


class CallScope:
    """One Claude request under way: the task that performs it, and why it was ended, if it was.

    `end` cancels the task once; the task turns the cancellation into an answer with that reason.
    A cancellation without a reason is the RPC's own (the client has gone).
    """

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task
        self.reason: str | None = None

    def end(self, reason: str) -> None:
        """End the call; the first reason stands."""
        if self.reason is None and not self._task.done():
            self.reason = reason
            self._task.cancel()


class InFlight:
    """Calls by the key that serves them. Bounded by the limits on requests in flight."""

    def __init__(self) -> None:
        self._scopes: dict[KeyRef, set[CallScope]] = {}

    @contextmanager
    def serving(self, scope: CallScope) -> Iterator[Callable[[KeyRef], None]]:
        """Registers scope under the key that it is given, and under the last one only."""
        held: list[KeyRef] = []

        def use(key: KeyRef) -> None:
            self._remove(held, scope)
            held.append(key)
            self._scopes.setdefault(key, set()).add(scope)

        try:
            yield use
        finally:
            self._remove(held, scope)

    def _remove(self, held: list[KeyRef], scope: CallScope) -> None:
        while held:
            key = held.pop()
            scopes = self._scopes[key]
            scopes.discard(scope)
            if not scopes:
                del self._scopes[key]

    def end(self, key: KeyRef, reason: str) -> int:
        """End every call that this key serves; returns how many."""
        scopes = tuple(self._scopes.get(key, ()))
        for scope in scopes:
            scope.end(reason)
        return len(scopes)

    def __len__(self) -> int:
        return sum(len(scopes) for scopes in self._scopes.values())
