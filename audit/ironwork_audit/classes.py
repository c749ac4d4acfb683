"""Which OCSF 1.6.0 class and activity an operation is (schema.ocsf.io/1.6.0/classes).

An operation that is not named here is an API Activity with the activity Other: nothing is left out
of the log because a table does not know it.

The tables say how entries are written from now on. How one is read is in the entry itself: its
`Kind`, held to a form that does not change, and to what `may_show` says. So rows may be added at
any time, and entries from before stay what they were. A row is never changed or taken away: who
shows an operation otherwise gives it another name (docs/adr/0029).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ironwork_audit import fields
from ironwork_audit.fields import FieldRefused

API_ACTIVITY: Final = 6003
AUTHENTICATION: Final = 3002
ENTITY_MANAGEMENT: Final = 3004

KEY_SERVICE: Final = "ironwork.keys.v1.KeyService"
AUDIT_SERVICE: Final = "ironwork.keys.v1.AuditService"
SERVER: Final = "ironwork-server"

# API Activity: activity_id 1 Create, 2 Read, 3 Update, 4 Delete, 99 Other.
_CREATE: Final = (1, "Create")
_READ: Final = (2, "Read")
_UPDATE: Final = (3, "Update")
_DELETE: Final = (4, "Delete")
_OTHER: Final = (99, "Other")
_LOGON: Final = (1, "Logon")

# managed_entity.type_id: 5 Policy, 99 Other.
_POLICY_ENTITY: Final = 5
_OTHER_ENTITY: Final = 99


# The activities that an entry may have, by class: ids and captions of OCSF 1.6.0.
ACTIVITIES: Final[Mapping[int, frozenset[tuple[int, str]]]] = {
    API_ACTIVITY: frozenset({_CREATE, _READ, _UPDATE, _DELETE, _OTHER}),
    AUTHENTICATION: frozenset({_LOGON, (2, "Logoff"), _OTHER}),
    ENTITY_MANAGEMENT: frozenset({_CREATE, _READ, _UPDATE, _DELETE, _OTHER}),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How an operation is shown. service: api.service.name, or service.name of a logon; '' in
    Entity Management. entity: name and type_id of what is managed (Entity Management only). Every
    member is checked on creation; FieldRefused names the one at fault.
    """

    class_uid: int
    activity: tuple[int, str]
    service: str
    entity: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        if self.activity not in ACTIVITIES.get(self.class_uid, frozenset()):
            raise FieldRefused("activity: not one of this class, or not of this name")
        managed = self.class_uid == ENTITY_MANAGEMENT
        if managed is not (self.entity is not None) or managed is not (self.service == ""):
            raise FieldRefused("class_uid: a service or an entity that does not belong to it")
        if self.entity is None:
            fields.SERVICE.check("service", self.service)
        else:
            fields.ENTITY.check("entity.name", self.entity[0])
            fields.ENTITY_TYPE.check("entity.type_id", self.entity[1])

    @property
    def category_uid(self) -> int:
        """3 Identity & Access Management, 6 Application Activity: the class's first digit."""
        return self.class_uid // 1000

    @property
    def type_uid(self) -> int:
        """OCSF's number for a class and an activity together."""
        return self.class_uid * 100 + self.activity[0]


def _managed(name: str, type_id: int) -> Kind:
    return Kind(ENTITY_MANAGEMENT, _UPDATE, "", (name, type_id))


def _rpc(activity: tuple[int, str], service: str = KEY_SERVICE) -> Kind:
    return Kind(API_ACTIVITY, activity, service)


# WithKey is one Claude request: it reads the workspace's key.
BY_OPERATION: Final[Mapping[str, Kind]] = {
    "AddKey": _rpc(_CREATE),
    "ListMasked": _rpc(_READ),
    "DeleteKey": _rpc(_DELETE),
    "WithKey": _rpc(_READ),
    "ListEntries": _rpc(_READ, AUDIT_SERVICE),
    "ReadAudit": _rpc(_READ, AUDIT_SERVICE),
    "hsm.generate": _rpc(_CREATE, "ironwork-hsm"),
    "hsm.destroy": _rpc(_DELETE, "ironwork-hsm"),
    "master_key.switch": _rpc(_UPDATE, SERVER),
    "master_key.retire": _rpc(_UPDATE, SERVER),
    "break_glass.drop": _rpc(_DELETE, SERVER),
}

# By the part of the name before the first dot.
BY_AREA: Final[Mapping[str, Kind]] = {
    "auth": Kind(AUTHENTICATION, _LOGON, "ironwork.keys.v1"),
    "policy": _managed("policy", _POLICY_ENTITY),
    "identity": _managed("identity mapping", _POLICY_ENTITY),
    "certificate": _managed("certificate", _OTHER_ENTITY),
    "trust": _managed("trust roots", _OTHER_ENTITY),
    "organization": _rpc(_UPDATE),
    "hsm": _rpc(_OTHER, "ironwork-hsm"),
    "anthropic": _rpc(_OTHER, "api.anthropic.com"),
    "journal": _rpc(_OTHER, "ironwork-journal"),
}

_DEFAULT: Final = _rpc(_OTHER, SERVER)


def kind_of(operation: str) -> Kind:
    """How this operation is written now; total."""
    return BY_OPERATION.get(operation) or _area_of(operation) or _DEFAULT


def may_show(operation: str, kind: Kind) -> bool:
    """Whether an entry of this operation may be shown so.

    One with a row: as that says, or, as before there was the row, as its area or as Other. One
    without: as anything of its area's class, since a newer version may know more of it than this.
    """
    area = _area_of(operation)
    named = BY_OPERATION.get(operation)
    if kind == _DEFAULT:
        return True
    if named is not None:
        return kind in {named, area}
    return area is None or kind.class_uid == area.class_uid


def _area_of(operation: str) -> Kind | None:
    area, dot, _ = operation.partition(".")
    return BY_AREA.get(area) if dot else None
