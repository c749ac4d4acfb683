"""The keys that the simulator knows, and what each may do."""

import json
import secrets
import string
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ironwork_simulator.behaviour import Behaviour
from ironwork_simulator.plain import Invalid

_URL_SAFE = string.ascii_letters + string.digits + "-_"
_MAX_KEYS = 100_000


class KeyState(Enum):
    """How Anthropic treats a key; ironwork_simulator.access says what each is answered."""

    VALID = "valid"
    REVOKED = "revoked"
    WITHOUT_INFERENCE = "without_inference"
    ORGANIZATION_DISABLED = "organization_disabled"
    ORGANIZATION_ON_HOLD = "organization_on_hold"
    WITHOUT_CREDIT = "without_credit"


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key, the organisation it belongs to (a UUID), its state, and a behaviour of its own."""

    key: str = field(repr=False)
    organization_id: str
    state: KeyState = KeyState.VALID
    behaviour: Behaviour | None = None

    @property
    def last4(self) -> str:
        """The only part of a key that is ever written down."""
        return self.key[-4:]

    @classmethod
    def from_json(cls, value: object) -> "KnownKey":
        """Read `{"key", "organization_id"?, "state"?, "behaviour"?}`; Invalid names the field
        and never holds the key.
        """
        if not isinstance(value, Mapping):
            raise Invalid("expected an object with key, organization_id, state, behaviour")
        unknown = sorted(set(value) - {"key", "organization_id", "state", "behaviour"})
        if unknown:
            raise Invalid(f"{unknown[0]}: unknown field")
        key = value.get("key")
        if not isinstance(key, str) or not key.isascii() or not key.isprintable() or not key:
            raise Invalid("key: expected a string of visible ASCII")
        organization = value.get("organization_id", str(uuid.uuid4()))
        if not isinstance(organization, str):
            raise Invalid("organization_id: expected a string")
        states = [state.value for state in KeyState]
        state = value.get("state", KeyState.VALID.value)
        if state not in states:
            raise Invalid(f"state: expected one of {', '.join(states)}")
        behaviour = value.get("behaviour")
        return cls(
            key=key,
            organization_id=organization,
            state=KeyState(state),
            behaviour=None if behaviour is None else Behaviour.from_json(behaviour),
        )


def make_key() -> str:
    """A well-formed throw-away key: `sk-ant-api03-`, 93 URL-safe characters, `AA` (108 in all)."""
    return "sk-ant-api03-" + "".join(secrets.choice(_URL_SAFE) for _ in range(93)) + "AA"


class KeyTable:
    """The known keys, in the order of their registration. Safe to use from any thread."""

    def __init__(self, keys: Iterable[KnownKey] = ()) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, KnownKey] = {}
        self._indexes: dict[str, int] = {}
        for key in keys:
            self.put(key)

    def put(self, key: KnownKey) -> None:
        """Add a key, or replace what was known of it; its index stays."""
        with self._lock:
            if key.key not in self._indexes and len(self._indexes) >= _MAX_KEYS:
                raise Invalid(f"the simulator knows at most {_MAX_KEYS} keys")
            self._indexes.setdefault(key.key, len(self._indexes))
            self._keys[key.key] = key

    def find(self, key: str | None) -> KnownKey | None:
        """What is known of a key; None for a stranger."""
        return None if key is None else self._keys.get(key)

    def index(self, key: str | None) -> int | None:
        """The place of a key in the order of registration, from 0; None for a stranger."""
        return None if key is None else self._indexes.get(key)


def load_keys(path: Path) -> tuple[KnownKey, ...]:
    """Read a file `{"keys": [{"key": …, "organization_id": …, "state": …, "behaviour": …}]}`.

    Raises Invalid that names the entry and the field, never a key.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        # json's own error carries the document, keys and all.
        raise Invalid(f"{path}: is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise Invalid(f"{path}: expected an object with a list `keys`")
    keys = []
    for number, entry in enumerate(entries):
        try:
            keys.append(KnownKey.from_json(entry))
        except Invalid as error:
            raise Invalid(f"{path}: keys[{number}]: {error}") from None
    return tuple(keys)
