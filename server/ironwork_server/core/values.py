"""The values that pass between the layers. Immutable, without behaviour, without secrets
(the one secret type is core.secret.Secret).
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from ironwork_hsm import WrappedKey


class Action(Enum):
    """What a policy decides on; the names are the RPCs' (and Cedar's action ids)."""

    ADD_KEY = "AddKey"
    LIST_MASKED = "ListMasked"
    DELETE_KEY = "DeleteKey"
    WITH_KEY = "WithKey"
    READ_AUDIT = "ReadAudit"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, from the peer's certificate and the configured mapping.

    role is the mapping's name for it (`key-admin`, `agent`, `auditor`); workspace is None for a
    principal that belongs to none. expires_at is the certificate's notAfter (UTC).
    """

    spiffe_id: str
    role: str
    workspace: str | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Resource:
    """What is acted on: a workspace (None: the audit log), and a key where one is named."""

    workspace: str | None
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """What a caller says of itself and where it calls from; recorded as claimed."""

    task: str = ""
    agent: str = ""
    peer: str = ""


class KeyState(Enum):
    ACTIVE = "ACTIVE"
    REJECTED_BY_ANTHROPIC = "REJECTED_BY_ANTHROPIC"


@dataclass(frozen=True, slots=True)
class BreakGlassCopy:
    """A data key sealed for an offline recipient (ADR 0023). recipient: the public key's id."""

    recipient: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A key as it is stored. ciphertext includes the 16-byte GCM tag; nonce is 12 bytes. copy: kept
    beside the row when it is added; what is read of a row does not have it.
    """

    format: int
    nonce: bytes
    ciphertext: bytes
    wrapped: WrappedKey
    copy: BreakGlassCopy | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class WrappedRow:
    """What wraps a row's data key, and what it is bound to; without the sealed key itself, which
    moving to another master key never needs. created_at is UTC with microseconds.
    """

    workspace: str
    key_id: str
    sequence: int
    created_at: datetime
    format: int
    wrapped: WrappedKey
    copy: BreakGlassCopy | None = None


@dataclass(frozen=True, slots=True)
class Swap:
    """Put `new` in place of `old`, if `old` is what this row still has; and copy, if there is one,
    in place of the row's break-glass copy.
    """

    sequence: int
    old: WrappedKey
    new: WrappedKey
    copy: BreakGlassCopy | None = None


@dataclass(frozen=True, slots=True)
class Wrapping:
    """One version of a master key as the store knows it. rows: data keys that it wraps. pepper:
    whether it wraps the pepper too.
    """

    backend: str
    version: int
    rows: int = 0
    pepper: bool = False
    switched_on: bool = False
    retired: bool = False


@dataclass(frozen=True, slots=True)
class LogHead:
    """The newest tree head of an audit log that may have been signed. folder_id: of the folder
    that holds the log. size: entries. root: 32 bytes (RFC 9162, section 2.1).
    """

    origin: str
    folder_id: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A row of the store. Times are UTC with microseconds. sequence is the store's own, growing."""

    workspace: str
    key_id: str
    sequence: int
    display_name: str
    mask: str
    state: KeyState
    organization_id: str
    created_at: datetime
    created_by: str
    validated_at: datetime
    fingerprint: bytes = field(repr=False)
    sealed: SealedKey = field(repr=False)
    last_used_at: datetime | None = None

    @property
    def name(self) -> str:
        """The resource name, `workspaces/{workspace}/keys/{key}`."""
        return f"workspaces/{self.workspace}/keys/{self.key_id}"


@dataclass(frozen=True, slots=True)
class Replay:
    """The first answer to a write with a request_id, kept to be given again (AIP-155).

    digest: HMAC-SHA256 of the request under the pepper, so that an id used again for another
    request is noticed. answer: opaque bytes of the use case, masked values only.
    """

    workspace: str
    method: str
    request_id: str
    digest: bytes = field(repr=False)
    answer: bytes = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as Anthropic reported them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AuditReference:
    """Where an entry stands: an index means (origin, index)."""

    origin: str
    index: int


class Phase(Enum):
    """INTENT is durable before the act; OUTCOME follows it; EVENT stands alone."""

    INTENT = "intent"
    OUTCOME = "outcome"
    EVENT = "event"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One entry of the log before it is an OCSF event. Its fields are the allow list.

    operation: an RPC (`AddKey`), an HSM operation (`hsm.unwrap`) or an event (`policy.reload`).
    correlation_id: one for everything that one call caused. details: only names in
    ironwork_audit's allow list; values are short strings or integers.
    """

    phase: Phase
    operation: str
    correlation_id: str
    time: datetime
    principal: str = ""
    role: str = ""
    workspace: str = ""
    key_id: str = ""
    claims: Claims = field(default_factory=Claims)
    success: bool | None = None
    reason: str = ""
    details: dict[str, str | int] = field(default_factory=dict)
    # OUTCOME only: the index of the INTENT it belongs to.
    intent_index: int | None = None


@dataclass(frozen=True, slots=True)
class ScreenedRequest:
    """An agent's request that passed screening: exactly what will be sent, without framing and
    without credentials. path and query are raw (percent-encoding kept). content_length None with
    has_body means chunked. max_body is the path group's bound in bytes.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    content_length: int | None
    has_body: bool
    max_body: int
    # The API path's name on the list, such as `messages`; for the audit log and metrics.
    route: str


class Verdict(Enum):
    """What Anthropic says of a key."""

    VALID = "VALID"
    INVALID = "INVALID"
    WITHOUT_PERMISSION = "WITHOUT_PERMISSION"
    UNVERIFIABLE = "UNVERIFIABLE"


@dataclass(frozen=True, slots=True)
class Validation:
    """A verdict with what came with it. detail: a stable UPPER_SNAKE word for logs and errors."""

    verdict: Verdict
    organization_id: str = ""
    detail: str = ""
    retry_after_s: float | None = None
