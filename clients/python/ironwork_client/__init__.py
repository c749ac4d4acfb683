"""Ironwork keys for agents and admins: transports for the Anthropic SDK, and a typed client."""

from ironwork_client.audit import AuditClient, AuditRecord
from ironwork_client.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    IronworkError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceFault,
    Unauthenticated,
    Unavailable,
)
from ironwork_client.keys import (
    AsyncKeyClient,
    DeletedKey,
    KeyClient,
    KeyState,
    MaskedKey,
    MasterKeyVersion,
)
from ironwork_client.profile import Profile, ProfileError
from ironwork_client.transport import (
    AsyncWithKeyTransport,
    AuditReference,
    CallReport,
    Usage,
    WithKeyTransport,
)

__all__ = [
    "AlreadyExists",
    "AsyncKeyClient",
    "AsyncWithKeyTransport",
    "AuditClient",
    "AuditRecord",
    "AuditReference",
    "CallReport",
    "DeadlineExceeded",
    "DeletedKey",
    "FailedPrecondition",
    "FieldViolation",
    "InvalidArgument",
    "IronworkError",
    "KeyClient",
    "KeyState",
    "MaskedKey",
    "MasterKeyVersion",
    "NotFound",
    "PermissionDenied",
    "Profile",
    "ProfileError",
    "ResourceExhausted",
    "ServiceFault",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "WithKeyTransport",
]
