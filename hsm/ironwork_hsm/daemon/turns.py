"""Whose turn it is at a device: what waits for it, what is under way in it, and its silences.

A device's process is given a few calls at once; the rest waits here. Users have it in turn, and
the connections of one user in turn, so that nobody is held up by how much another one asks. Where
the queue is full, whoever has the most in it loses the newest.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from ironwork_hsm.interface import Busy, HsmError, Unavailable
from ironwork_hsm.remote.link import Answered, Link, TimedOut
from ironwork_hsm.remote.wire import Frame

# The child ends a call by itself at 2 deadlines (a slow one at 20): this is an answer that is lost.
_LOST_DEADLINES: Final = 30


class Asker(NamedTuple):
    """Who has a turn. connection: any number that no other connection of the process has."""

    uid: int
    connection: int


@dataclass(slots=True, eq=False)
class _Call:
    build: Callable[[int], bytes]
    answered: Answered
    due: float
    under_way: bool = False


class FairQueue:
    """Calls that wait, at most `capacity`. One round goes over users, and each user's next
    connection.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._count = 0
        # The next to have its turn is first, on both levels. Nothing empty is kept.
        self._users: OrderedDict[int, OrderedDict[int, deque[_Call]]] = OrderedDict()

    def put(self, asker: Asker, call: _Call) -> _Call | None:
        """Let it wait; the call that has to go for it, which may be the same one."""
        connections = self._users.setdefault(asker.uid, OrderedDict())
        connections.setdefault(asker.connection, deque()).append(call)
        self._count += 1
        return self._newest_of_the_greatest() if self._count > self._capacity else None

    def take(self) -> _Call | None:
        """The next one, if any waits."""
        if not self._users:
            return None
        uid, connections = self._users.popitem(last=False)
        number, calls = connections.popitem(last=False)
        call = calls.popleft()
        self._count -= 1
        if calls:
            connections[number] = calls
        if connections:
            self._users[uid] = connections
        return call

    def _newest_of_the_greatest(self) -> _Call:
        uid, connections = max(
            self._users.items(), key=lambda item: sum(len(calls) for calls in item[1].values())
        )
        number, calls = max(connections.items(), key=lambda item: len(item[1]))
        call = calls.pop()
        self._count -= 1
        if not calls:
            del connections[number]
        if not connections:
            del self._users[uid]
        return call


class Turns:
    """Asks a device's process, in turn. Belongs to one loop.

    deadline_s: for each call, its wait included. window: calls under way in the process at once.
    capacity: calls that wait. on_silent: the process answered nothing for deadline_s, although
    something was under way in it. on_answer: hears every answer, also a late one, and says whether
    it shows that the device lives.
    """

    def __init__(
        self,
        *,
        deadline_s: float,
        window: int,
        capacity: int,
        on_silent: Callable[[TimedOut], None],
        on_answer: Callable[[Link, Frame | HsmError], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline_s = deadline_s
        self._window = window
        self._on_silent = on_silent
        self._on_answer = on_answer
        self._waiting = FairQueue(capacity)
        self._link: Link | None = None
        self._under_way = 0
        # When the process last answered, or was given something while it had nothing.
        self._heard_at = 0.0
        # Calls that nobody has heard of yet. All have the same time, so the oldest is first.
        self._unheard: dict[_Call, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None

    def use(self, link: Link) -> None:
        """Ask this one from now on."""
        self._link, self._under_way = link, 0

    def stop(self) -> None:
        """The process is given up: what waits hears Unavailable. What is under way hears it from
        its link.
        """
        self._link, self._under_way = None, 0
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        while (call := self._waiting.take()) is not None:
            self._tell(call, Unavailable("The device's process is being replaced."))

    def ask(self, asker: Asker, build: Callable[[int], bytes], answered: Answered) -> None:
        """Ask in turn; answered hears what becomes of it, never before this returns. Raises
        Unavailable, Busy.
        """
        if self._link is None or not self._link.is_live:
            raise Unavailable("The connection to the device's process is lost.")
        call = _Call(build, answered, self._loop.time() + self._deadline_s)
        gone = self._waiting.put(asker, call)
        if gone is call:
            raise _full()
        if gone is not None:
            self._tell(gone, _full())
        self._unheard[call] = None
        if self._timer is None:
            self._timer = self._loop.call_at(call.due, self._expire)
        self._fill()

    # --- inside

    def _fill(self) -> None:
        """Give the process what it has room for."""
        while self._link is not None and self._under_way < self._window:
            call = self._waiting.take()
            if call is None:
                return
            if call in self._unheard:
                self._give(self._link, call)

    def _give(self, link: Link, call: _Call) -> None:
        def heard(answer: Frame | HsmError) -> None:
            lives = self._on_answer(link, answer)
            if link is self._link:
                self._under_way -= 1
                if lives:
                    self._heard_at = self._loop.time()
            self._tell(call, answer)
            self._fill()

        try:
            link.request(call.build, heard, deadline_s=self._deadline_s * _LOST_DEADLINES)
        except HsmError as error:
            # The link was lost in this round of the loop, and says so by itself.
            self._loop.call_soon(self._tell, call, error)
            return
        call.under_way = True
        self._under_way += 1
        if self._under_way == 1:
            self._heard_at = self._loop.time()
            if self._silence is None:
                self._silence = self._loop.call_later(self._deadline_s, self._listen)

    def _listen(self) -> None:
        """Whether the process has been silent too long."""
        self._silence = None
        if not self._under_way:
            return
        due = self._heard_at + self._deadline_s
        if due > self._loop.time():
            self._silence = self._loop.call_at(due, self._listen)
        else:
            self._on_silent(TimedOut("The HSM did not answer within its deadline."))

    def _expire(self) -> None:
        """Tell what is overdue, and come back for the next."""
        self._timer = None
        now = self._loop.time()
        while self._unheard:
            oldest = next(iter(self._unheard))
            if oldest.due > now:
                self._timer = self._loop.call_at(oldest.due, self._expire)
                return
            if oldest.under_way:
                self._tell(oldest, TimedOut("The HSM did not answer within its deadline."))
            else:
                self._tell(oldest, Busy("The HSM is busy: the call's turn did not come in time."))

    def _tell(self, call: _Call, answer: Frame | HsmError) -> None:
        """Once: what comes after its deadline is heard by nobody."""
        if call in self._unheard:
            del self._unheard[call]
            call.answered(answer)


def _full() -> Busy:
    return Busy("The HSM is busy: too many calls are waiting for it.")
