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
from ironwork_server.custody.vault import map_hsm_error
from ironwork_server.custody.versions import SwitchedVersions, wraps_with

log = logging.getLogger(__name__)


class MasterKeyProbe:
    """For start-up, and for health while an HSM is failing; never on a timer while all is well."""

    def __init__(
        self,
        wrappers: Sequence[KeyWrapper],
        journal: Journal,
        store: SwitchedVersions,
        *,
        meter: Meter = SILENT,
    ) -> None:
        """wrappers: the first wraps, with the version that is switched on in store."""
        self._wrappers = wrappers
        self._store = store
        self._journal = journal
        self._meter = meter
        self._sick: Sequence[KeyWrapper] = ()

    async def check(self) -> None:
        """Wrap and unwrap once with each master key, and once more for each mechanism that its
        HSM refuses; the first one with the version that is switched on. Every one is seen to; then
        the first one's error is raised. Errors: Unavailable, DataLoss, HsmError for a configuration
        that cannot work.
        """
        switched = await self._store.switched_version(self._wrappers[0].name)
        sick: list[KeyWrapper] = []
        first: IronworkError | HsmError | None = None
        for wrapper in self._wrappers:
            try:
                await self._settle(wrapper, switched if wrapper is self._wrappers[0] else None)
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

    async def _settle(self, wrapper: KeyWrapper, version: int | None) -> None:
        tried = await wraps_with(wrapper, version)
        for _ in range(MAX_TRIALS):
            try:
                await self._recorded("hsm.probe", tried.details, lambda: wrapper.check(version))
            except MechanismRefused:
                refused, tried = tried, await wraps_with(wrapper, version)
                log.warning(
                    "hsm.mechanism_refused",
                    extra={
                        "backend": wrapper.name,
                        "mechanism": refused.mechanism,
                        "next_mechanism": tried.mechanism,
                    },
                )
                continue
            return
        raise map_hsm_error(MechanismRefused(""))

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
