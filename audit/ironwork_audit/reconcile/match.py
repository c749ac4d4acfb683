"""Pairs what our log expects with what was recorded elsewhere: each with one of the other, within
its time. Pure.

Slots are intervals with a function, calls are (almost) points in time. Taking the calls in order of
time and giving each the open slot that ends first pairs as many as can be paired, when all slots of
a function are alike. They are not quite (mechanism, result), so what is left over is then tried
by exchanges along alternating paths, of a bounded length.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from ironwork_audit.reconcile.calls import Call

# How many partners one search looks at before it gives up: what it looks for is then named.
_MOST_LOOKED_AT: Final = 20_000
_MOST_SET_ASIDE: Final = 64


class Slot(NamedTuple):
    """One call that an entry of ours stands for. function, subject, ok: as of Call; ok None takes
    both. required: False where it may have been made (a failed or interrupted operation). step: the
    index of its step, for whoever made it. or_subject: another subject that will do; "" for none.
    """

    function: str
    subject: str
    start_ms: int
    end_ms: int
    ok: bool | None
    required: bool
    step: int
    or_subject: str = ""


class Matched(NamedTuple):
    """calls: of each slot, its call's index or None. slots: of each call, its slot's or None."""

    calls: list[int | None]
    slots: list[int | None]


def fits(slot: Slot, call: Call) -> bool:
    """Whether the call may be the one that the slot stands for."""
    return (
        slot.function == call.function
        and slot.start_ms <= call.end_ms
        and call.start_ms <= slot.end_ms
        and (call.subject in (slot.subject, slot.or_subject, "") or not slot.subject)
        and (slot.ok is call.ok or slot.ok is None or call.ok is None)
    )


def match(slots: Sequence[Slot], calls: Sequence[Call]) -> Matched:
    """Pair them: as many required slots as can be, then as many calls."""
    matched = Matched([None] * len(slots), [None] * len(calls))
    by_function: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for index, slot in enumerate(slots):
        by_function[slot.function][0].append(index)
    for index, call in enumerate(calls):
        by_function[call.function][1].append(index)
    for of_slots, of_calls in by_function.values():
        _Pairing(slots, calls, of_slots, of_calls, matched).pair()
    return matched


class _Pairing:
    """The slots and calls of one function."""

    def __init__(
        self,
        slots: Sequence[Slot],
        calls: Sequence[Call],
        of_slots: list[int],
        of_calls: list[int],
        matched: Matched,
    ) -> None:
        self._slots = slots
        self._calls = calls
        self._matched = matched
        self._slot_order = sorted(of_slots, key=lambda index: slots[index].start_ms)
        self._call_order = sorted(of_calls, key=lambda index: calls[index].start_ms)
        self._starts = [slots[index].start_ms for index in self._slot_order]
        self._times = [calls[index].start_ms for index in self._call_order]
        self._longest = max((slots[i].end_ms - slots[i].start_ms for i in of_slots), default=0)
        self._widest = max((calls[i].end_ms - calls[i].start_ms for i in of_calls), default=0)

    def pair(self) -> None:
        self._sweep()
        for slot in self._slot_order:
            if self._slots[slot].required and self._matched.calls[slot] is None:
                self._fill(slot)
        for call in self._call_order:
            if self._matched.slots[call] is None:
                self._place(call)

    def _sweep(self) -> None:
        waiting: list[tuple[int, bool, int]] = []
        position = 0
        for call in self._call_order:
            end_ms = self._calls[call].end_ms
            while position < len(self._slot_order) and self._starts[position] <= end_ms:
                index = self._slot_order[position]
                slot = self._slots[index]
                # Of two that end together, the required one first.
                heapq.heappush(waiting, (slot.end_ms, not slot.required, index))
                position += 1
            while waiting and waiting[0][0] < self._calls[call].start_ms:
                heapq.heappop(waiting)
            aside: list[tuple[int, bool, int]] = []
            while waiting and len(aside) < _MOST_SET_ASIDE:
                item = heapq.heappop(waiting)
                if fits(self._slots[item[2]], self._calls[call]):
                    self._join(item[2], call)
                    break
                aside.append(item)
            for item in aside:
                heapq.heappush(waiting, item)

    def _join(self, slot: int, call: int) -> None:
        self._matched.calls[slot] = call
        self._matched.slots[call] = slot

    def _calls_of(self, slot: int) -> list[int]:
        first = bisect_left(self._times, self._slots[slot].start_ms - self._widest)
        last = bisect_right(self._times, self._slots[slot].end_ms)
        near = self._call_order[first:last]
        return [call for call in near if fits(self._slots[slot], self._calls[call])]

    def _slots_of(self, call: int) -> list[int]:
        first = bisect_left(self._starts, self._calls[call].start_ms - self._longest)
        last = bisect_right(self._starts, self._calls[call].end_ms)
        near = self._slot_order[first:last]
        return [slot for slot in near if fits(self._slots[slot], self._calls[call])]

    def _fill(self, wanted: int) -> None:
        """Find a call for a slot: a free one, or another slot's that has a substitute or may be
        without.
        """
        came_from: dict[int, int] = {}
        queue = deque([wanted])
        looked_at = 0
        while queue and looked_at < _MOST_LOOKED_AT:
            slot = queue.popleft()
            for call in self._calls_of(slot):
                looked_at += 1
                if call in came_from:
                    continue
                came_from[call] = slot
                holder = self._matched.slots[call]
                if holder is None or not self._slots[holder].required:
                    if holder is not None:
                        self._matched.calls[holder] = None
                    self._shift_slots(call, came_from, wanted)
                    return
                queue.append(holder)

    def _shift_slots(self, call: int, came_from: dict[int, int], wanted: int) -> None:
        while True:
            slot = came_from[call]
            before = self._matched.calls[slot]
            self._join(slot, call)
            if slot == wanted or before is None:
                return
            call = before

    def _place(self, wanted: int) -> None:
        """Find a slot for a call: a free one, or one whose call can go elsewhere."""
        came_from: dict[int, int] = {}
        queue = deque([wanted])
        looked_at = 0
        while queue and looked_at < _MOST_LOOKED_AT:
            call = queue.popleft()
            for slot in self._slots_of(call):
                looked_at += 1
                if slot in came_from:
                    continue
                came_from[slot] = call
                holder = self._matched.calls[slot]
                if holder is None:
                    self._shift_calls(slot, came_from, wanted)
                    return
                queue.append(holder)

    def _shift_calls(self, slot: int, came_from: dict[int, int], wanted: int) -> None:
        while True:
            call = came_from[slot]
            before = self._matched.slots[call]
            self._join(slot, call)
            if call == wanted or before is None:
                return
            slot = before
