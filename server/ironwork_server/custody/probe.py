"""Probing master keys with a real round trip, and opening their devices anew, on record like every
other HSM operation.

An HSM that does not offer a mechanism refuses that round trip, and the next mechanism is probed in
its turn, with a record of its own: the choice of a mechanism is in the log, and never silent.
"""

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from time import perf_counter

from ironwork_hsm import MAX_TRIALS, HsmError, KeyWrapper, MechanismRefused, Recoverable
from ironwork_server.core.errors import IronworkError
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.ports import Journal
from ironwork_server.core.values import AuditEvent, Phase
from ironwork_server.custody.uninterrupted import uninterrupted
from ironwork_server.custody.vault import map_hsm_error, wraps_with

log = logging.getLogger(__name__)


class MasterKeyProbe:
    """For start-up, and for health while an HSM is failing; never on a timer while all is well."""

    def __init__(
        self, wrappers: Sequence[KeyWrapper], journal: Journal, *, meter: Meter = SILENT
    ) -> None:
        self._wrappers = wrappers
        self._journal = journal
        self._meter = meter
        self._sick: Sequence[KeyWrapper] = ()

    async def check(self) -> None:
        """Wrap and unwrap once with each master key, and once more for each mechanism that its
        HSM refuses. Every one is seen to; then the first one's error is raised. Errors:
        Unavailable, DataLoss, HsmError for a configuration that cannot work.
        """
        sick: list[KeyWrapper] = []
        first: IronworkError | HsmError | None = None
        for wrapper in self._wrappers:
            try:
                await self._settle(wrapper)
            except (IronworkError, HsmError) as error:
                sick.append(wrapper)
                first = first or error
        self._sick = sick
        if first is not None:
            raise first

    async def reopen(self) -> bool:
        """Open anew, once, the device of each master key that failed the last check, where that can
        be done from here: not in the HSM process or a cloud, which see to it themselves. Says
        whether there was one. Every one is seen to. Errors: Unavailable.
        """
        recoverable = [wrapper for wrapper in self._sick if isinstance(wrapper, Recoverable)]
        failed: list[IronworkError] = []
        for wrapper in recoverable:
            try:
                await self._recorded("hsm.open", {"backend": wrapper.name}, wrapper.recover)
            except IronworkError as error:
                # The next one may be another device.
                failed.append(error)
        if failed:
            raise failed[0]
        return bool(recoverable)

    async def _settle(self, wrapper: KeyWrapper) -> None:
        for _ in range(MAX_TRIALS):
            refused = wrapper.mechanism
            try:
                await self._check(wrapper)
            except MechanismRefused:
                log.warning(
                    "hsm.mechanism_refused",
                    extra={
                        "backend": wrapper.name,
                        "mechanism": refused,
                        "next_mechanism": wrapper.mechanism,
                    },
                )
                continue
            return
        raise map_hsm_error(MechanismRefused(""))

    async def _check(self, wrapper: KeyWrapper) -> None:
        # Once, since a refusal changes the mechanism before the outcome is written.
        tried = wraps_with(wrapper)
        await self._recorded("hsm.probe", tried, wrapper.check)

    async def _recorded(
        self,
        operation: str,
        details: Mapping[str, str | int],
        act: Callable[[], Awaitable[None]],
    ) -> None:
        correlation_id = str(uuid.uuid4())
        intent = _event(operation, details, correlation_id, Phase.INTENT)
        (reference,) = await uninterrupted(self._journal.append(intent))
        success, reason, began = False, "INTERRUPTED", perf_counter()
        try:
            await act()
            success, reason = True, ""
        except MechanismRefused:
            reason = "MECHANISM_REFUSED"
            raise
        except HsmError as error:
            mapped = map_hsm_error(error)
            reason = mapped.reason
            raise mapped from None
        finally:
            backend = str(details["backend"])
            self._meter.hsm(backend, operation, reason or "ok", perf_counter() - began)
            # Also where it is cancelled: a hanging HSM must leave no intent open.
            outcome = _event(
                operation,
                details,
                correlation_id,
                Phase.OUTCOME,
                success=success,
                reason=reason,
                intent_index=reference.index,
            )
            await self._journal.append(outcome)


def _event(
    operation: str,
    details: Mapping[str, str | int],
    correlation_id: str,
    phase: Phase,
    *,
    success: bool | None = None,
    reason: str = "",
    intent_index: int | None = None,
) -> AuditEvent:
    return AuditEvent(
        phase=phase,
        operation=operation,
        correlation_id=correlation_id,
        time=datetime.now(UTC),
        success=success,
        reason=reason,
        intent_index=intent_index,
        details=dict(details),
    )
