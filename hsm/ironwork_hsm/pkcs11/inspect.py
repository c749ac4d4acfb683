"""What a token and its keys report, and what whoever holds the PIN could do there. Reads only.

The one attempt at the PIN is left out where the token says that few are left. No key is used: what
the PIN could do is read from the token's flags, the session that it gives, its mechanisms and the
attributes of what it sees (PKCS#11 2.40, sections 3.2, 4.4 and 5.6).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11.exceptions import PKCS11Error

from ironwork_hsm.interface import BackendOptions
from ironwork_hsm.lanes import Lanes, keep
from ironwork_hsm.pkcs11 import login
from ironwork_hsm.pkcs11.errors import translate
from ironwork_hsm.pkcs11.module import Module, load_module
from ironwork_hsm.uri import Pkcs11Uri

# More objects than this are not counted one by one.
MAX_OBJECTS = 1024

# What is asked of each key of ours; a module that does not know an attribute gives None.
ASKED = (
    Attribute.SENSITIVE,
    Attribute.EXTRACTABLE,
    Attribute.NEVER_EXTRACTABLE,
    Attribute.LOCAL,
    Attribute.MODIFIABLE,
    Attribute.COPYABLE,
    Attribute.DESTROYABLE,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)
_MAKES_KEYS = frozenset({Mechanism.AES_KEY_GEN, Mechanism.GENERIC_SECRET_KEY_GEN})
_KEY_CLASSES = frozenset({ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY})


class PinTries(StrEnum):
    """What the token says of the tries that are left for its user's PIN; it tells no number."""

    ENOUGH = "enough"
    LOW = "low"
    LAST = "last"
    LOCKED = "locked"


@dataclass(frozen=True, slots=True)
class KeyReport:
    """One of the master key's objects. attributes: by name (`SENSITIVE`), None where unknown."""

    identifier: str
    key_type: str
    attributes: Mapping[str, bool | None]


@dataclass(frozen=True, slots=True)
class Power:
    """What the PIN could do beside using the master key.

    writes: it gives a session that may create, destroy and change objects, and the PIN itself.
    makes_keys: and the token makes keys. others: keys in the token that are not this master key.
    readable: of all keys, those whose value it could read or wrap out.
    """

    writes: bool
    makes_keys: bool
    others: int
    readable: int


@dataclass(frozen=True, slots=True)
class TokenReport:
    """keys, power: None where nobody logged in, because few tries are left."""

    label: str
    manufacturer: str
    model: str
    serial: str
    tries: PinTries
    keys: tuple[KeyReport, ...] | None
    power: Power | None


async def inspect_token(uri: Pkcs11Uri, options: BackendOptions | None = None) -> TokenReport:
    """Look at the token and the keys that uri names, in a thread of its own. Raises
    ConfigurationError, PinRefused, Unavailable.
    """
    deadline_s = (options or BackendOptions()).slow_deadline_s
    lane: Lanes[None] = Lanes(
        setup=lambda: None, teardown=keep, translate=translate, count=1, capacity=1
    )
    await lane.start(deadline_s=deadline_s)
    try:
        return await lane.run(lambda _: _inspect(uri), deadline_s=deadline_s)
    finally:
        await lane.close(deadline_s=deadline_s)


def _inspect(uri: Pkcs11Uri) -> TokenReport:
    module = load_module(uri.module_path, uri.init_args)
    with module.turnstile.call() as generation:
        return _inspect_in(module, generation, uri)


def _inspect_in(module: Module, generation: int, uri: Pkcs11Uri) -> TokenReport:
    token = login.find_token(module, uri)
    tries = tries_left(token.flags)
    keys, power = None, None
    if tries is PinTries.ENOUGH:
        key = login.acquire(module, token, uri, generation)
        try:
            keys, power = _look(token, uri.object)
        finally:
            login.release(module, key, generation)
    return TokenReport(
        label=token.label,
        manufacturer=token.manufacturer_id,
        model=token.model,
        serial=token.serial.decode("utf-8", errors="replace"),
        tries=tries,
        keys=keys,
        power=power,
    )


def tries_left(flags: TokenFlag) -> PinTries:
    """By the flags of CK_TOKEN_INFO."""
    if flags & TokenFlag.USER_PIN_LOCKED:
        return PinTries.LOCKED
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        return PinTries.LAST
    if flags & TokenFlag.USER_PIN_COUNT_LOW:
        return PinTries.LOW
    return PinTries.ENOUGH


def _look(token: Any, label: str) -> tuple[tuple[KeyReport, ...], Power]:
    session = login.open_session(token)
    try:
        keys, others, readable = [], 0, 0
        for kind in _KEY_CLASSES:
            # A list at once: no other call may use the session while a search is open.
            for key in list(session.get_objects({Attribute.CLASS: kind}))[:MAX_OBJECTS]:
                readable += _readable(key)
                if kind is ObjectClass.SECRET_KEY and _read(key, Attribute.LABEL) == label:
                    keys.append(_describe(key))
                else:
                    others += 1
    finally:
        session.close()
    writes = _gives_writing_session(token)
    makes = writes and bool(_MAKES_KEYS & token.slot.get_mechanisms())
    power = Power(writes=writes, makes_keys=makes, others=others, readable=readable)
    return tuple(sorted(keys, key=lambda key: key.identifier)), power


def _describe(key: Any) -> KeyReport:
    kind = _read(key, Attribute.KEY_TYPE)
    return KeyReport(
        identifier=bytes(_read(key, Attribute.ID) or b"").hex(),
        key_type=kind.name if isinstance(kind, KeyType) else "unknown",
        attributes={attribute.name: _flag(key, attribute) for attribute in ASKED},
    )


def _gives_writing_session(token: Any) -> bool:
    """Whether the login that there is extends to a read-write session; it is closed unused."""
    if token.flags & TokenFlag.WRITE_PROTECTED:
        return False
    try:
        token.open(rw=True).close()
    except PKCS11Error:
        return False
    return True


def _readable(key: Any) -> bool:
    """Not sensitive: C_GetAttributeValue gives it. Extractable: C_WrapKey gives it, under a key
    that whoever holds the PIN may bring in.
    """
    return _flag(key, Attribute.SENSITIVE) is False or _flag(key, Attribute.EXTRACTABLE) is True


def _flag(key: Any, attribute: Attribute) -> bool | None:
    value = _read(key, attribute)
    return value if isinstance(value, bool) else None


def _read(key: Any, attribute: Attribute) -> Any:
    """None where the module does not know the attribute, or does not tell."""
    try:
        return key[attribute]
    except (PKCS11Error, NotImplementedError):
        return None
