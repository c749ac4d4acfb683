"""Master keys as objects of the token: how they are found, checked and generated.

A master key is every AES secret key with the URI's label; its version is its CKA_ID, 4 bytes big
endian, from 1.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.exceptions import AttributeSensitive, AttributeTypeInvalid

from ironwork_hsm.interface import ConfigurationError, KeyVersion, Unavailable
from ironwork_hsm.pkcs11.blob import MAX_VERSION

_KEY_BITS = 256
# More than this many versions under one label is a mistake, not a rotation.
MAX_VERSIONS = 1024

_TEMPLATE: Mapping[Attribute, object] = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    # Said, not left to the module's defaults: this key does nothing but GCM.
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}


@dataclass(frozen=True, slots=True)
class MasterKey:
    """One version as one session sees it. key: python-pkcs11's object, of that session only."""

    key: Any
    description: KeyVersion


def find_keys(session: Any, label: str) -> dict[int, MasterKey]:
    """All versions, oldest first. Raises ConfigurationError for one that must not be used."""
    template = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.AES,
        Attribute.LABEL: label,
    }
    found: dict[int, MasterKey] = {}
    # A list at once: no other call may use the session while a search is open.
    for key in list(session.get_objects(template)):
        master = _checked(key, label)
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


def generate_key(session: Any, label: str, version: int) -> MasterKey:
    """Generate this version in the token; session is read-write. Raises Unavailable if another
    process has made the same version meanwhile; then ours is gone again.
    """
    key = session.generate_key(
        KeyType.AES,
        _KEY_BITS,
        id=struct.pack(">I", version),
        label=label,
        store=True,
        capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
        template=dict(_TEMPLATE),
    )
    same = {Attribute.LABEL: label, Attribute.ID: struct.pack(">I", version)}
    if len(list(session.get_objects(same))) != 1:
        key.destroy()
        raise Unavailable(f"Another process has just created version {version}; try again.")
    return _checked(key, label)


def _checked(key: Any, label: str) -> MasterKey:
    version = _version(key[Attribute.ID], label)
    required = {
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.ENCRYPT: True,
        Attribute.DECRYPT: True,
        Attribute.TOKEN: True,
    }
    for attribute, value in required.items():
        if key[attribute] is not value:
            raise ConfigurationError(
                f"Master key `{label}` version {version} has CKA_{attribute.name} "
                f"{not value}; it must be {value}. Create one with `ironwork-server master-key "
                "create`."
            )
    if key[Attribute.VALUE_LEN] * 8 != _KEY_BITS:
        raise ConfigurationError(f"Master key `{label}` version {version} is not AES-256.")
    return MasterKey(
        key=key,
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
