"""Master keys as objects of the token: how they are found, checked and generated.

A master key is every AES or HMAC secret key with the URI's label; its version is its CKA_ID, 4
bytes big endian, from 1. What kind of key a version is says which mechanisms it can serve.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.exceptions import (
    AttributeReadOnly,
    AttributeSensitive,
    AttributeTypeInvalid,
    AttributeValueInvalid,
    GeneralError,
    TemplateInconsistent,
)

from ironwork_hsm.binding import MAX_VERSION
from ironwork_hsm.interface import ConfigurationError, KeyVersion, Unavailable

_KEY_BITS = 256
# More than this many versions under one label is a mistake, not a rotation.
MAX_VERSIONS = 1024

# How a device calls an HMAC key: generic by PKCS#11 2.20, specific by 2.40 and by nShield.
_HMAC_TYPES = (KeyType.GENERIC_SECRET, KeyType.SHA256_HMAC)


class KeyKind(Enum):
    """What a version can be used for; each is used for nothing else."""

    AES = "AES"
    HMAC = "HMAC"


_CAPABILITIES: Mapping[KeyKind, MechanismFlag] = {
    KeyKind.AES: MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
    KeyKind.HMAC: MechanismFlag.SIGN,
}
_USES: Mapping[KeyKind, tuple[Attribute, ...]] = {
    KeyKind.AES: (Attribute.ENCRYPT, Attribute.DECRYPT),
    KeyKind.HMAC: (Attribute.SIGN,),
}
_GENERATED_AS: Mapping[KeyKind, KeyType] = {
    KeyKind.AES: KeyType.AES,
    KeyKind.HMAC: KeyType.GENERIC_SECRET,
}
# Said, not left to the module's defaults: this key does what its kind is for and nothing else.
_ALL_USES = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)
_SECRET: Mapping[Attribute, bool] = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
}
# No further use can be switched on later, in the key or in a copy of it; the tightest first, since
# not every module knows both. CKA_DESTROYABLE stays as it is: false could never be undone, and
# `master-key retire --destroy` would be refused.
_FIXED: Sequence[Mapping[Attribute, bool]] = (
    {Attribute.MODIFIABLE: False, Attribute.COPYABLE: False},
    {Attribute.MODIFIABLE: False},
)
# How modules refuse an attribute; NSS says of CKA_COPYABLE that there was a general error.
_REFUSED_TEMPLATE = (
    AttributeTypeInvalid,
    AttributeValueInvalid,
    AttributeReadOnly,
    TemplateInconsistent,
    GeneralError,
)


@dataclass(frozen=True, slots=True)
class MasterKey:
    """One version as one session sees it. handle: of that session only."""

    handle: int
    kind: KeyKind
    description: KeyVersion


def find_keys(session: Any, label: str) -> dict[int, MasterKey]:
    """All versions, oldest first. Raises ConfigurationError for one that must not be used."""
    found: dict[int, MasterKey] = {}
    for key_type in (KeyType.AES, *_HMAC_TYPES):
        template = {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: key_type,
            Attribute.LABEL: label,
        }
        kind = KeyKind.AES if key_type is KeyType.AES else KeyKind.HMAC
        # A list at once: no other call may use the session while a search is open.
        for key in list(session.get_objects(template)):
            master = _checked(key, kind, label)
            version = master.description.version
            if version in found:
                raise ConfigurationError(
                    f"The token holds two keys with label `{label}` and CKA_ID {version}; "
                    "remove the one that nothing was wrapped with."
                )
            found[version] = master
            if len(found) > MAX_VERSIONS:
                raise ConfigurationError(f"The token holds over {MAX_VERSIONS} keys `{label}`.")
    return dict(sorted(found.items()))


def generate_key(session: Any, label: str, version: int, kind: KeyKind = KeyKind.AES) -> MasterKey:
    """Generate this version in the token; session is read-write. Raises Unavailable if another
    process has made the same version meanwhile; then ours is gone again.
    """
    key = _generate(session, label, version, kind)
    same = {Attribute.LABEL: label, Attribute.ID: struct.pack(">I", version)}
    if len(list(session.get_objects(same))) != 1:
        key.destroy()
        raise Unavailable(f"Another process has just created version {version}; try again.")
    return _checked(key, kind, label)


def _generate(session: Any, label: str, version: int, kind: KeyKind) -> Any:
    """With the tightest attributes that the module takes."""
    template = {use: use in _USES[kind] for use in _ALL_USES} | dict(_SECRET)

    def generate(fixed: Mapping[Attribute, bool]) -> Any:
        return session.generate_key(
            _GENERATED_AS[kind],
            _KEY_BITS,
            id=struct.pack(">I", version),
            label=label,
            store=True,
            capabilities=_CAPABILITIES[kind],
            template=template | dict(fixed),
        )

    for fixed in _FIXED:
        try:
            return generate(fixed)
        except _REFUSED_TEMPLATE:
            continue
    return generate({})


def _checked(key: Any, kind: KeyKind, label: str) -> MasterKey:
    version = _version(key[Attribute.ID], label)
    required = {
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.TOKEN: True,
    } | dict.fromkeys(_USES[kind], True)
    for attribute, value in required.items():
        if key[attribute] is not value:
            raise ConfigurationError(
                f"Master key `{label}` version {version} has CKA_{attribute.name} "
                f"{not value}; it must be {value}. Create one with `ironwork-server master-key "
                "create`."
            )
    if key[Attribute.VALUE_LEN] * 8 != _KEY_BITS:
        raise ConfigurationError(f"Master key `{label}` version {version} is not {kind.value}-256.")
    return MasterKey(
        handle=key.handle,
        kind=kind,
        description=KeyVersion(
            version=version,
            label=label,
            sensitive=True,
            extractable=False,
            never_extractable=_reported(key, Attribute.NEVER_EXTRACTABLE),
            local=_reported(key, Attribute.LOCAL),
        ),
    )


def _version(identifier: bytes, label: str) -> int:
    version = int.from_bytes(identifier, "big")
    if len(identifier) != 4 or not 1 <= version <= MAX_VERSION:
        raise ConfigurationError(
            f"A key with label `{label}` has a CKA_ID that is no version (4 bytes, from 1); "
            "give Ironwork's master key a label of its own."
        )
    return version


def _reported(key: Any, attribute: Attribute) -> bool:
    """A history attribute; modules that do not keep it cannot vouch for it."""
    try:
        return bool(key[attribute])
    except (AttributeTypeInvalid, AttributeSensitive):
        return False
