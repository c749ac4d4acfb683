"""The core's audit values as the log's own events, and the journal's events about itself."""

import uuid
from collections.abc import Mapping
from datetime import datetime

from ironwork_audit import EVENT, Event
from ironwork_server.core.values import AuditEvent


def to_event(event: AuditEvent) -> Event:
    """The same event for the log. Raises FieldRefused for what the log may not hold."""
    return Event(
        phase=event.phase.value,
        operation=event.operation,
        correlation_id=event.correlation_id,
        time=event.time,
        principal=event.principal,
        role=event.role,
        workspace=event.workspace,
        key_id=event.key_id,
        task=event.claims.task,
        agent=event.claims.agent,
        peer=event.claims.peer,
        success=event.success,
        reason=event.reason,
        details=event.details,
        intent_index=event.intent_index,
    )


def own_event(operation: str, time: datetime, details: Mapping[str, str | int]) -> Event:
    """An event of the journal about itself: `journal.recovered`, for instance."""
    return Event(
        phase=EVENT,
        operation=operation,
        correlation_id=str(uuid.uuid4()),
        time=time,
        details=details,
    )
