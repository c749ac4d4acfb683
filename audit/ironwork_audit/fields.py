"""What an event may say: every field by name, with its type and its bound.

This is the allow list. Nothing is redacted: a name that is not here, or a value that does not fit
its rule, is refused, and the code that offered it is what must change.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Value = str | int

# No control characters, no line or paragraph separators, no lone surrogates (not encodable).
_TEXT: Final = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*"
_VISIBLE: Final = r"[\x21-\x7e]*"
_PLAIN: Final = r"[\x21\x23-\x5b\x5d-\x7e]*"  # visible, and no character that JSON escapes
_ASCII: Final = r"[\x20-\x7e]*"
WORD: Final = r"[A-Za-z][A-Za-z0-9_.-]*"
_UPPER_SNAKE: Final = r"[A-Z0-9_]*"
_LABEL: Final = r"[A-Za-z0-9_.-]*"
MASK: Final = r"(?:sk-ant-[a-z0-9-]{1,8}…[\x21-\x7e]{4})?"
_INDEXES: Final = r"[0-9,]*"

# An Anthropic credential of any kind. A mask (`sk-ant-api…wxyz`) is not one.
_CREDENTIAL: Final = re.compile(r"sk-ant-[A-Za-z0-9_-]{12}")


class FieldRefused(ValueError):
    """A field that an event may not hold. Its text names the field and the rule, not the value."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most `longest` characters that matches `pattern` whole."""

    pattern: re.Pattern[str]
    longest: int

    def check(self, name: str, value: object) -> str:
        """The value itself, or FieldRefused."""
        if not isinstance(value, str):
            raise FieldRefused(f"{name}: must be a string")
        if len(value) > self.longest:
            raise FieldRefused(f"{name}: longer than {self.longest} characters")
        if not self.pattern.fullmatch(value):
            raise FieldRefused(f"{name}: holds a character, or a form, that it may not have")
        # The log cannot be rewritten, so a credential that someone typed into a name or a task
        # must not get in by any field.
        if _CREDENTIAL.search(value):
            raise FieldRefused(f"{name}: holds what looks like an Anthropic credential")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """An integer from 0 to `largest`."""

    largest: int = 2**63 - 1

    def check(self, name: str, value: object) -> int:
        """The value itself, or FieldRefused."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise FieldRefused(f"{name}: must be an integer")
        if not 0 <= value <= self.largest:
            raise FieldRefused(f"{name}: must be from 0 to {self.largest}")
        return value


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false; 1 and 0 are taken as such."""

    def check(self, name: str, value: object) -> bool:
        """The value as bool, or FieldRefused."""
        if not isinstance(value, int) or value not in {0, 1}:
            raise FieldRefused(f"{name}: must be true or false")
        return bool(value)


Rule = Text | Number | Flag


def _text(pattern: str, longest: int) -> Text:
    return Text(re.compile(pattern), longest)


# The fields of every event; `ironwork_audit.event` says what they mean.
OPERATION: Final = _text(WORD, 64)
CORRELATION_ID: Final = _text(r"[\x21-\x7e]+", 64)
PRINCIPAL: Final = _text(_VISIBLE, 2048)  # SPIFFE ID, section 2.3: at most 2048 bytes
ROLE: Final = _text(_VISIBLE, 64)
WORKSPACE: Final = _text(_VISIBLE, 128)
KEY_ID: Final = _text(_VISIBLE, 128)
CLAIM: Final = _text(_ASCII, 128)
PEER: Final = _text(_ASCII, 256)
REASON: Final = _text(_UPPER_SNAKE, 64)
SERVICE: Final = _text(WORD, 64)
ENTITY: Final = _text(r"[a-z][a-z ]*", 64)
ENTITY_TYPE: Final = Number(99)
SEQUENCE: Final = Number()
# C2SP tlog-checkpoint: an origin has no spaces and no plus signs; ours is visible ASCII.
ORIGIN: Final = _text(r"[\x21-\x2a\x2c-\x7e]+", 255)

# The details: what else an event may hold, each where it applies.
DETAILS: Final[Mapping[str, Rule]] = {
    # The Claude request and its answer. A route is an API path's name on the list of paths: a
    # path itself holds ids, and is not recorded.
    "method": _text(r"[A-Z]*", 16),
    "route": _text(_LABEL, 64),
    "http_status": Number(999),
    "input_tokens": Number(),
    "output_tokens": Number(),
    "cache_creation_input_tokens": Number(),
    "cache_read_input_tokens": Number(),
    "anthropic_request_id": _text(_VISIBLE, 128),
    "sent_upstream": Flag(),
    "outcome": _text(_UPPER_SNAKE, 32),
    "request_bytes": Number(),
    "response_bytes": Number(),
    "duration_ms": Number(),
    # The key. Never more of it than its mask.
    "key_mask": _text(MASK, 64),
    "display_name": _text(_TEXT, 64),
    "organization_id": _text(_PLAIN, 128),
    "previous_organizations": _text(_PLAIN, 4096),  # joined by commas: 100 of Anthropic's UUIDs
    "state": _text(_UPPER_SNAKE, 32),
    "verdict": _text(_UPPER_SNAKE, 32),
    "verdict_detail": _text(_UPPER_SNAKE, 64),
    # What the caller asked for.
    "request_id": _text(_VISIBLE, 64),
    "replayed": Flag(),
    "allow_different_organization": Flag(),
    "cancel_in_flight": Flag(),
    "cancelled_requests": Number(),
    # The master key and the HSM.
    "backend": _text(_VISIBLE, 512),
    "master_key_version": Number(),
    "mechanism": _text(_LABEL, 64),
    "context_sha256": _text(r"[0-9a-f]*", 64),  # of what a blob is bound to; it is no secret
    "purpose": _text(_LABEL, 64),
    # The break-glass recipient: the beginning of its public key's hash.
    "recipient": _text(_LABEL, 64),
    "unwrap_index": Number(),  # of the intent that a use of a kept data key rests on
    # A witness, by its key's name.
    "witness": _text(_VISIBLE, 255),
    # Policy, certificates and identities.
    "policy_version": _text(_VISIBLE, 128),
    "previous_policy_version": _text(_VISIBLE, 128),
    "certificate_serial": _text(r"[0-9a-fA-F:]*", 128),
    "certificate_expires": _text(_VISIBLE, 40),
    # Counts over a window (aggregated refusals), and the journal's own events.
    "code": _text(_UPPER_SNAKE, 32),
    "count": Number(),
    "window_s": Number(),
    "bytes": Number(),
    "first_indexes": _text(_INDEXES, 512),
}


def check_details(details: Mapping[str, object]) -> dict[str, Value]:
    """A checked copy of an event's details; FieldRefused names the first that is not allowed."""
    checked: dict[str, Value] = {}
    for name, value in details.items():
        rule = DETAILS.get(name)
        if rule is None:
            # The name may be as foreign as the value: it is not repeated.
            raise FieldRefused("details: a name that is not on the allow list (fields.DETAILS)")
        checked[name] = rule.check(name, value)
    return checked


def fits(name: str, value: Value) -> bool:
    """Whether a detail may hold this value: for values from outside, such as a response's header,
    that are left out where they do not fit. Raises FieldRefused for a name off the list.
    """
    rule = DETAILS.get(name)
    if rule is None:
        raise FieldRefused("details: a name that is not on the allow list (fields.DETAILS)")
    try:
        rule.check(name, value)
    except FieldRefused:
        return False
    return True
