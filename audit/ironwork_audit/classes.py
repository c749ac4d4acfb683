"""Which OCSF 1.6.0 class and activity an operation is (schema.ocsf.io/1.6.0/classes).

An operation that is not named here is an API Activity with the activity Other: nothing is left out
of the log because a table does not know it.

An entry is valid only as `render` makes it: what an operation is shown as is never changed once a
log may hold it, and an operation that was written without a row here gets none later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

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


@dataclass(frozen=True, slots=True)
class Kind:
    """How an operation is shown. service: api.service.name, or service.name of a logon. entity:
    name and type_id of what is managed (Entity Management only).
    """

    class_uid: int
    activity: tuple[int, str]
    service: str
    entity: tuple[str, int] | None = None

    @property
    def category_uid(self) -> int:
        """3 Identity & Access Management, 6 Application Activity: the class's first digit."""
        return self.class_uid // 1000


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
}

# By the part of the name before the first dot.
BY_AREA: Final[Mapping[str, Kind]] = {
    "auth": Kind(AUTHENTICATION, _LOGON, "ironwork.keys.v1"),
    "policy": Kind(ENTITY_MANAGEMENT, _UPDATE, SERVER, ("policy", _POLICY_ENTITY)),
    "identity": Kind(ENTITY_MANAGEMENT, _UPDATE, SERVER, ("identity mapping", _POLICY_ENTITY)),
    "certificate": Kind(ENTITY_MANAGEMENT, _UPDATE, SERVER, ("certificate", _OTHER_ENTITY)),
    "trust": Kind(ENTITY_MANAGEMENT, _UPDATE, SERVER, ("trust roots", _OTHER_ENTITY)),
    "organization": _rpc(_UPDATE),
    "hsm": _rpc(_OTHER, "ironwork-hsm"),
    "anthropic": _rpc(_OTHER, "api.anthropic.com"),
    "journal": _rpc(_OTHER, "ironwork-journal"),
}

_DEFAULT: Final = _rpc(_OTHER, SERVER)


def kind_of(operation: str) -> Kind:
    """How this operation is shown; total."""
    named = BY_OPERATION.get(operation)
    if named is not None:
        return named
    area, dot, _ = operation.partition(".")
    return BY_AREA.get(area, _DEFAULT) if dot else _DEFAULT
