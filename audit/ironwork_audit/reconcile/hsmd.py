"""The server's logs against that of the HSM process (`ironwork-hsmd`), by correlation id: the
server hands it on with each request, so the pairing is exact.
"""

from collections.abc import Sequence
from typing import Final

from ironwork_audit.reconcile.calls import Call
from ironwork_audit.reconcile.device import Period, Result, shown
from ironwork_audit.reconcile.match import Slot, match
from ironwork_audit.reconcile.steps import Step

_BY_CALL: Final = frozenset({"hsm.wrap", "hsm.unwrap", "hsm.sign"})
# Asked for without a correlation id: paired by time.
_PROBE: Final = "hsm.probe"


def reconcile_hsmd(
    server: Sequence[Step], process: Sequence[Step], *, skew_ms: int, period: Period
) -> Result:
    """What the server says it asked for against what the HSM process says it was asked. The
    process's own probes and what it did for other users have no entry in the server's log: the
    former (no principal) are left out, the latter named. Keys that the process never used are not
    its: what the server did with them is left out.
    """
    asked = [step for step in process if step.principal and step.operation in {*_BY_CALL, _PROBE}]
    # The server may use other devices besides, by itself.
    held = {step.backend for step in process}
    wanted = [
        step
        for step in server
        if step.operation in {*_BY_CALL, _PROBE} and (step.backend in held or not process)
    ]
    slots = [_slot(step, number, skew_ms) for number, step in enumerate(wanted)]
    calls = [_call(step) for step in asked]
    matched = match(slots, calls)
    problems: list[tuple[int, str]] = []
    for step, slot, found in zip(wanted, slots, matched.calls, strict=True):
        if found is None and slot.required and period.covers(slot.start_ms, slot.end_ms):
            text = f"{step.place} at {shown(step.start_ms)}: {step.operation} is on record as done"
            problems.append((step.start_ms, f"{text}, and the HSM process has no entry for it"))
    for step, taker in zip(asked, matched.slots, strict=True):
        if taker is None and period.covers(step.start_ms, step.start_ms):
            text = f"{step.place} at {shown(step.start_ms)}: {step.operation} for {step.principal}"
            problems.append((step.start_ms, f"{text} has no entry in the server's log"))
    explained = sum(1 for at in matched.slots if at is not None and not slots[at].required)
    return Result(
        [text for _, text in sorted(problems)],
        entries=len(wanted),
        calls=len(asked),
        explained=explained,
        ignored=len(process) - len(asked),
    )


def _slot(step: Step, number: int, skew_ms: int) -> Slot:
    done = step.success is True
    late_ms = 0 if done else 30_000
    return Slot(
        function=_name(step),
        subject="",
        start_ms=step.start_ms - skew_ms,
        end_ms=(step.end_ms or step.start_ms) + late_ms + skew_ms,
        ok=True if done else None,
        required=done,
        step=number,
    )


def _call(step: Step) -> Call:
    return Call(_name(step), "", step.start_ms, step.start_ms, step.success, step.place)


def _name(step: Step) -> str:
    if step.operation in _BY_CALL:
        return f"{step.operation} {step.correlation_id}"
    return step.operation
