"""Generating keys inside their HSM, on record like every other HSM operation."""

import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from ironwork_hsm import HsmError, KeyCreator, KeyVersion, Signer
from ironwork_server.core.ports import Journal
from ironwork_server.core.values import AuditEvent, AuditReference, Phase
from ironwork_server.custody.operator_records import Operation, OperatorRecords, recorded
from ironwork_server.custody.vault import map_hsm_error


async def generate_master_key(
    backend: str, creator: KeyCreator, records: OperatorRecords
) -> KeyVersion:
    """Generate the next version; the intent is durable before the HSM acts. backend: its name.

    Errors: HsmError, Unavailable (the log cannot be written; where it is the outcome that cannot,
    the version is there all the same).
    """
    return await recorded(
        records,
        Operation("hsm.generate", {"backend": backend}),
        creator.create_version,
        lambda made: {"master_key_version": made.version},
    )


async def generate_signing_key(create: Callable[[], Awaitable[Signer]], journal: Journal) -> Signer:
    """Generate the key that signs the log, in the same way. create: does so. Errors: the same."""
    correlation_id = str(uuid.uuid4())

    async def record(phase: Phase, **changes: Any) -> AuditReference:
        details = {"purpose": "checkpoint"} | changes.pop("details", {})
        event = AuditEvent(
            phase=phase,
            operation="hsm.generate",
            correlation_id=correlation_id,
            time=datetime.now(UTC),
            details=details,
            **changes,
        )
        return (await journal.append(event))[0]

    intent = await record(Phase.INTENT)
    try:
        signer = await create()
    except HsmError as error:
        await record(
            Phase.OUTCOME,
            intent_index=intent.index,
            success=False,
            reason=map_hsm_error(error).reason,
        )
        raise
    made = {"backend": signer.name, "mechanism": signer.algorithm.value}
    await record(Phase.OUTCOME, intent_index=intent.index, success=True, details=made)
    return signer
