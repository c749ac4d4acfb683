"""One entry of the log as values. An Event that exists is one that the log may hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

from ironwork_audit import fields
from ironwork_audit.fields import FieldRefused, Value

INTENT: Final = "intent"
OUTCOME: Final = "outcome"
EVENT: Final = "event"
_PHASES: Final = frozenset({INTENT, OUTCOME, EVENT})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_DETAILS: Final[Mapping[str, Value]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Event:
    """What happened. Every field is checked on creation; FieldRefused names the one at fault.

    phase: `intent` (durable before the act), `outcome` (follows it, and names its intent) or
    `event` (stands alone). operation: an RPC (`AddKey`), an HSM operation (`hsm.unwrap`) or an
    event (`policy.reload`). time: aware; kept as UTC, in milliseconds (OCSF timestamp_t). peer: as
    gRPC writes it (`ipv4:10.0.0.1:4711`). success: None where it is not known yet. reason:
    UPPER_SNAKE. details: names of fields.DETAILS only. intent_index: the index, in the same log, of
    an outcome's intent.
    """

    phase: str
    operation: str
    correlation_id: str
    time: datetime
    principal: str = ""
    role: str = ""
    workspace: str = ""
    key_id: str = ""
    task: str = ""
    agent: str = ""
    peer: str = ""
    success: bool | None = None
    reason: str = ""
    details: Mapping[str, Value] = field(default_factory=lambda: _NO_DETAILS)
    intent_index: int | None = None

    def __post_init__(self) -> None:
        if self.phase not in _PHASES:
            raise FieldRefused("phase: must be intent, outcome or event")
        fields.OPERATION.check("operation", self.operation)
        fields.CORRELATION_ID.check("correlation_id", self.correlation_id)
        fields.PRINCIPAL.check("principal", self.principal)
        fields.ROLE.check("role", self.role)
        fields.WORKSPACE.check("workspace", self.workspace)
        fields.KEY_ID.check("key_id", self.key_id)
        fields.CLAIM.check("task", self.task)
        fields.CLAIM.check("agent", self.agent)
        fields.PEER.check("peer", self.peer)
        fields.REASON.check("reason", self.reason)
        if not isinstance(self.success, bool | None):
            raise FieldRefused("success: must be true, false or unknown")
        self._check_link()
        # A frozen dataclass normalises through object.__setattr__: time to milliseconds, and the
        # details to a checked copy that nobody else holds.
        object.__setattr__(self, "time", _milliseconds(self.time))
        checked = fields.check_details(self.details)
        object.__setattr__(self, "details", MappingProxyType(checked))

    def _check_link(self) -> None:
        if self.phase != OUTCOME:
            if self.intent_index is not None:
                raise FieldRefused("intent_index: only an outcome belongs to an intent")
            return
        if self.intent_index is None:
            raise FieldRefused("intent_index: an outcome names the intent that it belongs to")
        fields.SEQUENCE.check("intent_index", self.intent_index)


def to_timestamp(time: datetime) -> int:
    """Milliseconds since 1970 (OCSF timestamp_t), cut, not rounded."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def from_timestamp(milliseconds: int) -> datetime:
    """The UTC time; OverflowError for one past the year 9999."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def _milliseconds(time: datetime) -> datetime:
    if time.utcoffset() is None:
        raise FieldRefused("time: must have a time zone")
    if time < _EPOCH:
        raise FieldRefused("time: must not be before 1970")
    utc = time.astimezone(UTC)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)
