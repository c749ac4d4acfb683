"""Events as OCSF 1.6.0 JSON: API Activity 6003, Authentication 3002, Entity Management 3004.

An entry is one line of compact UTF-8 JSON with sorted keys. Where a value stands:

| value | member |
|---|---|
| index in the log | metadata.sequence |
| origin | metadata.log_name |
| operation | metadata.event_code; in 6003 api.operation too |
| correlation id | metadata.correlation_uid |
| time, time of writing | time, metadata.logged_time (milliseconds) |
| principal (SPIFFE id) | actor.user.uid; in 3002 user.uid |
| workspace | metadata.tenant_uid; in 6003 resources too |
| key | resources in 6003, unmapped elsewhere |
| peer | src_endpoint |
| success, reason | status_id (1, 2; 0 where not known yet), status_detail |
| the rest | unmapped, flat: phase, intent_index, role, task, agent, and fields.DETAILS |
"""

import json
from datetime import datetime
from typing import Any, Final

from ironwork_audit import classes, fields
from ironwork_audit.classes import Kind, kind_of
from ironwork_audit.endpoint import to_endpoint
from ironwork_audit.event import Event, to_timestamp

OCSF_VERSION: Final = "1.6.0"
PRODUCT: Final = {"name": "Ironwork keys", "vendor_name": "Ironwork"}

# tlog-tiles writes an entry's length as uint16; the fields' bounds keep an event far below it.
MAX_ENTRY_BYTES: Final = 65535

# By success: status_id and status.
STATUS: Final = {None: (0, "Unknown"), True: (1, "Success"), False: (2, "Failure")}
# severity_id: 1 Informational, 2 Low, 3 Medium.
_INFORMATIONAL: Final = 1
_LOW: Final = 2
_MEDIUM: Final = 3
# auth_protocol_id 99, Other: OCSF has no number for mutual TLS.
_MUTUAL_TLS: Final = {"auth_protocol": "mutual TLS", "auth_protocol_id": 99, "is_remote": True}

Document = dict[str, Any]

# Made once: json.dumps makes one for each call, at the cost of half the rendering.
_ENCODER: Final = json.JSONEncoder(
    sort_keys=True,
    separators=(",", ":"),
    ensure_ascii=False,
    allow_nan=False,
    check_circular=False,
)


def render(
    event: Event,
    *,
    origin: str,
    sequence: int,
    logged_time: datetime,
    kind: Kind | None = None,
) -> bytes:
    """The entry's exact bytes, without a line end. kind: how the operation is shown, where that is
    not as new entries show it. FieldRefused for a wrong origin or sequence.
    """
    fields.ORIGIN.check("origin", origin)
    fields.SEQUENCE.check("sequence", sequence)
    kind = kind or kind_of(event.operation)
    document = _common(event, kind)
    document["metadata"] = _metadata(event, origin, sequence, logged_time)
    document["unmapped"] = _unmapped(event, kind)
    if kind.entity is not None:
        document |= _entity_management(event, kind.entity)
    elif kind.class_uid == classes.AUTHENTICATION:
        document |= _authentication(event, kind)
    else:
        document |= _api_activity(event, kind)
    return dump(document)


def dump(document: Document) -> bytes:
    """The one way this log writes JSON."""
    return _ENCODER.encode(document).encode()


def _common(event: Event, kind: Kind) -> Document:
    activity_id, activity_name = kind.activity
    status_id, status = STATUS[event.success]
    document: Document = {
        "activity_id": activity_id,
        "activity_name": activity_name,
        "category_uid": kind.category_uid,
        "class_uid": kind.class_uid,
        "severity_id": _severity(event, kind),
        "src_endpoint": to_endpoint(event.peer),
        "status": status,
        "status_id": status_id,
        "time": to_timestamp(event.time),
        "type_uid": kind.type_uid,
    }
    if event.reason:
        document["status_detail"] = event.reason
    return document


def _severity(event: Event, kind: Kind) -> int:
    if kind.class_uid == classes.AUTHENTICATION and event.success is not True:
        return _MEDIUM
    return _LOW if event.success is False else _INFORMATIONAL


def _metadata(event: Event, origin: str, sequence: int, logged_time: datetime) -> Document:
    metadata: Document = {
        "correlation_uid": event.correlation_id,
        "event_code": event.operation,
        "log_name": origin,
        "logged_time": to_timestamp(logged_time),
        "product": PRODUCT,
        "sequence": sequence,
        "version": OCSF_VERSION,
    }
    if event.workspace:
        metadata["tenant_uid"] = event.workspace
    return metadata


def _unmapped(event: Event, kind: Kind) -> Document:
    unmapped: Document = {"phase": event.phase, **event.details}
    if event.intent_index is not None:
        unmapped["intent_index"] = event.intent_index
    # 3002 and 3004 have no place for a resource.
    key_id = event.key_id if kind.class_uid != classes.API_ACTIVITY else ""
    extra = {"role": event.role, "task": event.task, "agent": event.agent, "key_id": key_id}
    unmapped |= {name: value for name, value in extra.items() if value}
    return unmapped


def _actor(event: Event) -> Document:
    # OCSF wants one of user and app_name: without a principal, the service acted by itself.
    if event.principal:
        return {"user": {"uid": event.principal}}
    return {"app_name": classes.SERVER}


def _api_activity(event: Event, kind: Kind) -> Document:
    document: Document = {
        "actor": _actor(event),
        "api": {"operation": event.operation, "service": {"name": kind.service}},
    }
    named = {"workspace": event.workspace, "key": event.key_id}
    resources = [{"type": type_, "uid": uid} for type_, uid in named.items() if uid]
    if resources:
        document["resources"] = resources
    return document


def _authentication(event: Event, kind: Kind) -> Document:
    # OCSF wants a user: a peer without a valid identity has a name that says so, and no uid.
    user = {"uid": event.principal} if event.principal else {"name": "unidentified"}
    return {"user": user, "service": {"name": kind.service}, **_MUTUAL_TLS}


def _entity_management(event: Event, entity: tuple[str, int]) -> Document:
    name, type_id = entity
    return {"actor": _actor(event), "entity": {"name": name, "type_id": type_id}}
