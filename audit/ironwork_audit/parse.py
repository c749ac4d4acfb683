"""Reads entries: `parse` is strict and gives everything, `summarize` is quick and gives what a
scan or a filter needs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ironwork_audit import classes, fields
from ironwork_audit.classes import Kind, may_show
from ironwork_audit.endpoint import to_peer
from ironwork_audit.event import Event, from_timestamp
from ironwork_audit.fields import FieldRefused
from ironwork_audit.ocsf import MAX_ENTRY_BYTES, OCSF_VERSION, PRODUCT, dump, render

_NUMBERS: Final = frozenset(
    {"activity_id", "category_uid", "class_uid", "severity_id", "status_id", "time", "type_uid"}
)
_COMMON: Final = _NUMBERS | {
    "activity_name",
    "metadata",
    "src_endpoint",
    "status",
    "status_detail",
    "unmapped",
}
_OF_CLASS: Final[Mapping[int, frozenset[str]]] = {
    classes.API_ACTIVITY: _COMMON | {"actor", "api", "resources"},
    classes.AUTHENTICATION: _COMMON
    | {"user", "service", "auth_protocol", "auth_protocol_id", "is_remote"},
    classes.ENTITY_MANAGEMENT: _COMMON | {"actor", "entity"},
}
_METADATA: Final = frozenset(
    {
        "correlation_uid",
        "event_code",
        "log_name",
        "logged_time",
        "product",
        "sequence",
        "tenant_uid",
        "version",
    }
)
_SUCCESS: Final = {0: None, 1: True, 2: False}
# Members of `unmapped` that are fields of the event itself.
_OWN: Final = frozenset({"phase", "intent_index", "role", "task", "agent", "key_id"})


class NotAnEvent(ValueError):
    """These bytes are no entry of this log. Its text names the place, not the content."""


@dataclass(frozen=True, slots=True)
class ParsedEvent:
    """An entry: the event, and where and when it was written (UTC, milliseconds). kind: how its
    operation is shown, as the entry has it; today's `classes.kind_of` may say otherwise.
    """

    event: Event
    origin: str
    sequence: int
    logged_time: datetime
    kind: Kind


@dataclass(frozen=True, slots=True)
class Summary:
    """What a scan or a filter needs of an entry. time_ms: milliseconds since 1970."""

    origin: str
    sequence: int
    time_ms: int
    phase: str
    operation: str
    workspace: str
    key_id: str
    principal: str
    success: bool | None
    intent_index: int | None


def parse(entry: bytes) -> ParsedEvent:
    """The event that render wrote, now or in an earlier version. NotAnEvent unless these are, byte
    for byte, what render makes of it, shown as the entry shows it: allowed fields only, and no
    member that says otherwise than another.
    """
    document = _load(entry)
    try:
        _check_members(document, entry)
        return _rendered(_parsed(document, _summary(document)), entry)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError):
        raise NotAnEvent("entry: a member is missing or of a wrong type") from None
    except FieldRefused as refused:
        raise NotAnEvent(f"entry: {refused}") from None
    except NotAnEvent:
        raise
    except ValueError:  # UnicodeEncodeError for a lone surrogate, an address that is none
        raise NotAnEvent("entry: a value is not of the form that this log writes") from None


def summarize(entry: bytes) -> Summary:
    """The quick form, for entries that this log wrote: NotAnEvent for what is not JSON or lacks a
    member, but no check of allowed fields.
    """
    return summarize_with_document(entry)[0]


def summarize_with_document(entry: bytes) -> tuple[Summary, dict[str, Any]]:
    """The summary, and the JSON document that it is of: for whoever needs some more of it."""
    document = _load(entry)
    try:
        return _summary(document), document
    except (KeyError, TypeError, AttributeError, IndexError):
        raise NotAnEvent("entry: a member is missing or of a wrong type") from None


def _load(entry: bytes) -> dict[str, Any]:
    if len(entry) > MAX_ENTRY_BYTES:
        raise NotAnEvent("entry: too long")
    try:
        document = json.loads(entry, parse_float=_refuse_float, parse_constant=_refuse_float)
    except NotAnEvent:
        raise
    except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise NotAnEvent("entry: not JSON") from None
    if not isinstance(document, dict):
        raise NotAnEvent("entry: not a JSON object")
    return document


def _refuse_float(_: str) -> float:
    raise NotAnEvent("entry: holds a number that is not an integer")


def _summary(document: dict[str, Any]) -> Summary:
    metadata, unmapped = document["metadata"], document["unmapped"]
    sequence, time_ms = metadata["sequence"], document["time"]
    if type(sequence) is not int or type(time_ms) is not int:
        raise NotAnEvent("entry: metadata.sequence and time must be integers")
    user = document["user"] if "user" in document else document["actor"].get("user", {})
    summary = Summary(
        origin=metadata["log_name"],
        sequence=sequence,
        time_ms=time_ms,
        phase=unmapped["phase"],
        operation=metadata["event_code"],
        workspace=metadata.get("tenant_uid", ""),
        key_id=_key_id(document),
        principal=user.get("uid", ""),
        success=_SUCCESS[document["status_id"]],
        intent_index=unmapped.get("intent_index"),
    )
    texts = (summary.origin, summary.phase, summary.operation, summary.workspace, summary.principal)
    if any(type(text) is not str for text in texts) or (
        summary.intent_index is not None and type(summary.intent_index) is not int
    ):
        raise NotAnEvent("entry: a member is of a wrong type")
    return summary


def _key_id(document: dict[str, Any]) -> str:
    for resource in document.get("resources", ()):
        if resource["type"] == "key":
            return str(resource["uid"])
    return str(document["unmapped"].get("key_id", ""))


def _check_members(document: dict[str, Any], entry: bytes) -> None:
    if dump(document) != entry:
        raise NotAnEvent("entry: not in canonical form (compact, sorted, no duplicates)")
    if any(type(document[name]) is not int for name in _NUMBERS):
        raise NotAnEvent("entry: a number is not an integer")
    allowed = _OF_CLASS.get(document["class_uid"])
    if allowed is None:
        raise NotAnEvent("class_uid: not a class that this log writes")
    _only("entry", document, allowed)
    metadata = document["metadata"]
    _only("metadata", metadata, _METADATA)
    if metadata["version"] != OCSF_VERSION or metadata["product"] != PRODUCT:
        raise NotAnEvent("metadata: not this log's version or product")
    _only("actor", document.get("actor", {}), {"user", "app_name"})
    _only("actor.user", document.get("actor", {}).get("user", {}), {"uid"})
    _only("user", document.get("user", {}), {"uid", "name"})
    _only("api", document.get("api", {}), {"operation", "service"})
    _only("entity", document.get("entity", {}), {"name", "type_id"})
    for service in (document.get("service", {}), document.get("api", {}).get("service", {})):
        _only("service", service, {"name"})
    _check_resources(document)


def _rendered(parsed: ParsedEvent, entry: bytes) -> ParsedEvent:
    """The same, where render makes this entry of it. Much stands twice (status and status_id, the
    operation and its activity): whoever reads the one is told the same as whoever reads the other.
    """
    again = render(
        parsed.event,
        origin=parsed.origin,
        sequence=parsed.sequence,
        logged_time=parsed.logged_time,
        kind=parsed.kind,
    )
    if again != entry:
        raise NotAnEvent("entry: members contradict each other")
    return parsed


def _check_resources(document: dict[str, Any]) -> None:
    """Workspace and operation stand twice in an API Activity: both say the same."""
    if document["class_uid"] != classes.API_ACTIVITY:
        return
    expected = {
        "workspace": document["metadata"].get("tenant_uid", ""),
        "key": _key_id(document),
    }
    wanted = [{"type": type_, "uid": uid} for type_, uid in expected.items() if uid]
    if document.get("resources", []) != wanted:
        raise NotAnEvent("resources: not of the form that this log writes")
    if document["api"]["operation"] != document["metadata"]["event_code"]:
        raise NotAnEvent("api.operation: differs from metadata.event_code")


def _only(place: str, members: Mapping[str, Any], allowed: frozenset[str] | set[str]) -> None:
    if not members.keys() <= allowed:
        raise NotAnEvent(f"{place}: holds a member that this log does not write")


def _kind(document: dict[str, Any], operation: str) -> Kind:
    """How the entry shows its operation: of the form that entries have, in any version."""
    service, entity = "", None
    match document["class_uid"]:
        case classes.API_ACTIVITY:
            service = document["api"]["service"]["name"]
        case classes.AUTHENTICATION:
            service = document["service"]["name"]
        case _:
            entity = (document["entity"]["name"], document["entity"]["type_id"])
    activity = (document["activity_id"], document["activity_name"])
    kind = Kind(document["class_uid"], activity, service, entity)
    if not may_show(operation, kind):
        raise NotAnEvent("activity: not what this log shows the operation as")
    return kind


def _parsed(document: dict[str, Any], summary: Summary) -> ParsedEvent:
    unmapped, metadata = document["unmapped"], document["metadata"]
    event = Event(
        phase=summary.phase,
        operation=summary.operation,
        correlation_id=metadata["correlation_uid"],
        time=from_timestamp(summary.time_ms),
        principal=summary.principal,
        role=unmapped.get("role", ""),
        workspace=summary.workspace,
        key_id=summary.key_id,
        task=unmapped.get("task", ""),
        agent=unmapped.get("agent", ""),
        peer=to_peer(document["src_endpoint"]),
        success=summary.success,
        reason=document.get("status_detail", ""),
        details={name: value for name, value in unmapped.items() if name not in _OWN},
        intent_index=summary.intent_index,
    )
    return ParsedEvent(
        event=event,
        origin=fields.ORIGIN.check("metadata.log_name", summary.origin),
        sequence=fields.SEQUENCE.check("metadata.sequence", summary.sequence),
        logged_time=from_timestamp(metadata["logged_time"]),
        kind=_kind(document, event.operation),
    )
