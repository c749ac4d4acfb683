"""Our logs against a device's or a cloud's own record, one to one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ironwork_audit.reconcile.calls import Call, Recorded
from ironwork_audit.reconcile.match import Slot, match
from ironwork_audit.reconcile.steps import Step

Expect = Callable[[Sequence[Step], int], Iterator[Slot]]


@dataclass(frozen=True, slots=True)
class Result:
    """problems: each names one thing, in order of time. entries, calls: how many were held against
    each other. explained: calls that belong to operations which failed or were interrupted (or
    were repeated, in the cloud): they may be there or not, so that much is not proven. ignored:
    size queries, and what uses no key.
    """

    problems: list[str]
    entries: int
    calls: int
    explained: int
    ignored: int


@dataclass(frozen=True, slots=True)
class Period:
    """From start_ms on, before end_ms; None for no bound."""

    start_ms: int | None = None
    end_ms: int | None = None

    def covers(self, start_ms: int, end_ms: int) -> bool:
        """Whether all of it lies in the period."""
        return (self.start_ms is None or start_ms >= self.start_ms) and (
            self.end_ms is None or end_ms < self.end_ms
        )


def reconcile(
    steps: Sequence[Step], recorded: Recorded, expect: Expect, *, skew_ms: int, period: Period
) -> Result:
    """Hold them against each other. What begins or ends outside the period is used to explain what
    is inside, and is not missed itself. Raises UnknownStep.
    """
    slots = list(expect(steps, skew_ms))
    calls = recorded.calls
    matched = match(slots, calls)
    problems: list[tuple[int, str]] = []
    for slot, found in zip(slots, matched.calls, strict=True):
        if found is None and slot.required and period.covers(slot.start_ms, slot.end_ms):
            problems.append((slot.start_ms, _unseen(slot, steps[slot.step])))
    for call, taker in zip(calls, matched.slots, strict=True):
        if taker is None and period.covers(call.start_ms, call.end_ms):
            problems.append((call.start_ms, _unrecorded(call)))
    explained = sum(1 for at in matched.slots if at is not None and not slots[at].required)
    return Result(
        problems=[*recorded.problems, *(text for _, text in sorted(problems))],
        entries=len({slot.step for slot in slots}),
        calls=len(calls),
        explained=explained,
        ignored=recorded.ignored,
    )


def _unseen(slot: Slot, step: Step) -> str:
    what = f"{slot.function} {slot.subject}".rstrip()
    key = f" of key {step.key_id}" if step.key_id else ""
    return (
        f"{step.place} at {shown(step.start_ms)}: {step.operation}{key} is on record as done, "
        f"and the device has no {what} for it"
    )


def _unrecorded(call: Call) -> str:
    what = f"{call.function} {call.subject}".rstrip()
    result = {True: "", False: ", which failed,", None: ""}[call.ok]
    return f"{call.place} at {shown(call.start_ms)}: {what}{result} has no entry in the log"


def shown(milliseconds: int) -> str:
    """A time as RFC 3339, UTC."""
    time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
