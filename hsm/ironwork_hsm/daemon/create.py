"""`ironwork-hsmd create`: makes a version of the master key, in the device, on record.

An operator's command, never a request over the socket: a server that was taken over cannot make
keys. It has a record of its own beside the process' one, which that process holds while it runs.
"""

import contextlib
import uuid
from datetime import UTC, datetime
from typing import Final

from ironwork_audit import INTENT, OUTCOME, Event
from ironwork_hsm.backends import open_backend
from ironwork_hsm.daemon.device import reason_of
from ironwork_hsm.daemon.latch import latch_of, make_private
from ironwork_hsm.daemon.record import open_record
from ironwork_hsm.daemon.settings import Settings
from ironwork_hsm.interface import ConfigurationError, HsmError, KeyCreator

OPERATOR: Final = "operator"


async def create(settings: Settings, *, next_version: bool) -> int | None:
    """The version that was made, by the first backend; None where there is one and no further one
    was asked for. A running process learns of it by SIGHUP. A PIN that the token refused is not
    tried again, by no run and by no process. Raises HsmError.
    """
    make_private(settings.state)
    latch = latch_of(settings.state, settings.backends[0], {})
    with latch.trying() if latch is not None else contextlib.nullcontext():
        wrapper = await open_backend(settings.backends[0], allow_missing=True)
    try:
        if await wrapper.versions() and not next_version:
            return None
        if not isinstance(wrapper, KeyCreator):
            raise ConfigurationError(f"{wrapper.name}: create the key with the device's own tools.")
        record = open_record(
            settings.record_folder / OPERATOR, f"{settings.record_origin}/{OPERATOR}"
        )
        try:
            correlation_id = str(uuid.uuid4())
            intent = await record.append(
                Event(
                    phase=INTENT,
                    operation="hsm.generate",
                    correlation_id=correlation_id,
                    time=datetime.now(UTC),
                    details={"backend": wrapper.name},
                )
            )
            details: dict[str, str | int] = {"backend": wrapper.name}
            reason = "INTERRUPTED"
            try:
                made = await wrapper.create_version()
                details["master_key_version"] = made.version
                reason = ""
            except HsmError as error:
                reason = reason_of(error)
                raise
            finally:
                await record.append(
                    Event(
                        phase=OUTCOME,
                        operation="hsm.generate",
                        correlation_id=correlation_id,
                        time=datetime.now(UTC),
                        success=not reason,
                        reason=reason,
                        details=details,
                        intent_index=intent,
                    )
                )
            return made.version
        finally:
            await record.close()
    finally:
        await wrapper.close()
