"""Probing master keys with a real round trip, on record like every other HSM operation."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from time import perf_counter

from ironwork_hsm import HsmError, KeyWrapper
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.ports import Journal
from ironwork_server.core.values import AuditEvent, Phase
from ironwork_server.custody.uninterrupted import uninterrupted
from ironwork_server.custody.vault import map_hsm_error


class MasterKeyProbe:
    """For start-up, and for health while an HSM is failing; never on a timer while all is well."""

    def __init__(
        self, wrappers: Sequence[KeyWrapper], journal: Journal, *, meter: Meter = SILENT
    ) -> None:
        self._wrappers = wrappers
        self._journal = journal
        self._meter = meter

    async def check(self) -> None:
        """Wrap and unwrap once with each master key. Errors: Unavailable, DataLoss."""
        for wrapper in self._wrappers:
            await self._check(wrapper)

    async def _check(self, wrapper: KeyWrapper) -> None:
        correlation_id = str(uuid.uuid4())
        intent = _event(wrapper, correlation_id, Phase.INTENT)
        (reference,) = await uninterrupted(self._journal.append(intent))
        success, reason, began = False, "INTERRUPTED", perf_counter()
        try:
            await wrapper.check()
            success, reason = True, ""
        except HsmError as error:
            mapped = map_hsm_error(error)
            reason = mapped.reason
            raise mapped from None
        finally:
            self._meter.hsm(wrapper.name, "hsm.probe", reason or "ok", perf_counter() - began)
            # Also where health's deadline cancels it: a hanging HSM must leave no intent open.
            outcome = _event(
                wrapper,
                correlation_id,
                Phase.OUTCOME,
                success=success,
                reason=reason,
                intent_index=reference.index,
            )
            await self._journal.append(outcome)


def _event(
    wrapper: KeyWrapper,
    correlation_id: str,
    phase: Phase,
    *,
    success: bool | None = None,
    reason: str = "",
    intent_index: int | None = None,
) -> AuditEvent:
    return AuditEvent(
        phase=phase,
        operation="hsm.probe",
        correlation_id=correlation_id,
        time=datetime.now(UTC),
        success=success,
        reason=reason,
        intent_index=intent_index,
        details={
            "backend": wrapper.name,
            "master_key_version": wrapper.current_version,
            "mechanism": wrapper.mechanism,
        },
    )
