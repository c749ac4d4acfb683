"""What an operator's command does, on record: HSM operations as the operator's, in a log of its
own, since the running server holds its own (ADR 0022).
"""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from ironwork_audit import FieldRefused
from ironwork_hsm import MAX_TRIALS, HsmError, KeyWrapper, MechanismRefused
from ironwork_server.core.ports import Journal
from ironwork_server.core.values import AuditEvent, AuditReference, Phase
from ironwork_server.custody.vault import map_hsm_error
from ironwork_server.custody.versions import wraps_with
from ironwork_server.journal.events import to_event

T = TypeVar("T")
Details = Mapping[str, str | int]

ROLE = "operator"


@dataclass(frozen=True, slots=True)
class Operation:
    """One HSM operation that is about to happen. correlation_id: shared by what belongs together,
    such as the unwrap and the wrap of one row.
    """

    name: str
    details: Details
    workspace: str = ""
    key_id: str = ""
    correlation_id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one ended. intent: where its intent stands. reason: empty where it succeeded."""

    operation: Operation
    intent: AuditReference
    reason: str = ""
    details: Details = field(default_factory=dict)


class OperatorRecords:
    """Writes for one operator. principal: who runs the command, such as `unix:1000/alice`; empty
    where the service acts by itself (`dev`).
    """

    def __init__(self, journal: Journal, principal: str) -> None:
        self._journal = journal
        self._principal = principal

    def can_hold(self, operation: Operation) -> bool:
        """Whether the log has room for what an operation says: names that were read from the store
        may be of any form, if somebody wrote to it.
        """
        try:
            to_event(self._event(Phase.INTENT, operation))
        except FieldRefused:
            return False
        return True

    async def write(
        self, outcomes: Sequence[Outcome] = (), intents: Sequence[Operation] = ()
    ) -> Sequence[AuditReference]:
        """Outcomes of what is over, and intents of what comes next, made durable together; where
        the intents stand. At most 64 in all. Errors: Unavailable.
        """
        events = [self._outcome(one) for one in outcomes]
        events += [self._event(Phase.INTENT, operation) for operation in intents]
        written = await self._journal.append(*events) if events else ()
        return written[len(outcomes) :]

    async def begin(self, operation: Operation) -> AuditReference:
        """Make one intent durable. Errors: Unavailable."""
        (reference,) = await self.write(intents=[operation])
        return reference

    async def event(self, operation: Operation) -> None:
        """Record what stands alone, and succeeded. Errors: Unavailable."""
        await self._journal.append(self._event(Phase.EVENT, operation, success=True))

    def _outcome(self, outcome: Outcome) -> AuditEvent:
        return self._event(
            Phase.OUTCOME,
            outcome.operation,
            success=not outcome.reason,
            reason=outcome.reason,
            intent_index=outcome.intent.index,
            more=outcome.details,
        )

    def _event(
        self,
        phase: Phase,
        operation: Operation,
        *,
        success: bool | None = None,
        reason: str = "",
        intent_index: int | None = None,
        more: Details | None = None,
    ) -> AuditEvent:
        return AuditEvent(
            phase=phase,
            operation=operation.name,
            correlation_id=operation.correlation_id,
            time=datetime.now(UTC),
            principal=self._principal,
            role=ROLE if self._principal else "",
            workspace=operation.workspace,
            key_id=operation.key_id,
            success=success,
            reason=reason,
            intent_index=intent_index,
            details={**operation.details, **(more or {})},
        )


async def recorded(
    records: OperatorRecords,
    operation: Operation,
    act: Callable[[], Awaitable[T]],
    found: Callable[[T], Details],
) -> T:
    """One HSM operation between its intent and its outcome, which holds what found says of the
    result. Errors: act's, Unavailable.
    """
    intent = await records.begin(operation)
    reason: str = "INTERRUPTED"
    details: Details = {}
    try:
        result = await act()
        reason, details = "", found(result)
    except MechanismRefused:
        reason = "MECHANISM_REFUSED"
        raise
    except HsmError as error:
        reason = map_hsm_error(error).reason
        raise
    finally:
        await records.write([Outcome(operation, intent, reason, details)])
    return result


async def prove(wrapper: KeyWrapper, records: OperatorRecords, version: int | None = None) -> None:
    """A round trip with this version (its newest without one), and one more for each mechanism that
    its device refuses. Errors: HsmError, Unavailable.
    """
    for _ in range(MAX_TRIALS):
        operation = Operation("hsm.probe", (await wraps_with(wrapper, version)).details)
        try:
            await recorded(records, operation, lambda: wrapper.check(version), lambda _: {})
        except MechanismRefused:
            continue
        return
    raise MechanismRefused(f"{wrapper.name} has no mechanism that its device offers.")
