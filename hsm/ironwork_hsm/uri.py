"""PKCS#11 URIs (RFC 7512), read strictly: what is not understood is refused, never ignored.

    pkcs11:token=ironwork;object=master?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin

Two vendor attributes of the query (RFC 7512 section 2.3) are ours: `ironwork-init-args`, a string
that the library wants when it is initialised (NSS), and `ironwork-mechanism`, the only mechanism
to wrap with, instead of the best one that works.

The path says which key, the query how to reach it. A URI holds no credential: `pin-value` is
refused, and `pin-source` names a file. Errors name the attribute and never repeat a value or
anything of the query, since that is where somebody may have typed a PIN.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from ironwork_hsm.interface import ConfigurationError

SCHEME = "pkcs11"
MAX_URI_LENGTH = 4096

# RFC 7512 section 2.3: pk11-pchar and pk11-qchar without the percent-encoded form.
_UNRESERVED = r"A-Za-z0-9._~\-"
_PATH_VALUE = re.compile(rf"(?:[{_UNRESERVED}:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{{2}})*")
_QUERY_VALUE = re.compile(rf"(?:[{_UNRESERVED}:\[\]@!$'()*+,=/?|]|%[0-9A-Fa-f]{{2}})*")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
# What stays unencoded in a canonical path, beside letters, digits and `_.-~`.
_PATH_SAFE = ":[]@!$'()*+,=&"

# The fields of CK_TOKEN_INFO and CK_SLOT_INFO (PKCS#11 2.40, 3.2): UTF-8 bytes that fit.
_PATH_LIMITS = {
    "token": 32,
    "manufacturer": 32,
    "serial": 16,
    "model": 16,
    "slot-manufacturer": 32,
    "slot-description": 64,
    "slot-id": 20,
    "object": 255,
    "type": 16,
}
_PATH_REFUSED = {
    "id": "leave it out: CKA_ID is the key's version, which the backend chooses itself",
    "library-manufacturer": "leave it out: module-path says which library",
    "library-description": "leave it out: module-path says which library",
    "library-version": "leave it out: module-path says which library",
}
_INIT_ARGS = "ironwork-init-args"
_MECHANISM = "ironwork-mechanism"
_QUERY_NAMES = ("module-path", "pin-source", _INIT_ARGS, _MECHANISM)
_PIN_VALUE = "pin-value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkcs11Uri:
    """One master key in one token. Strings are decoded; an attribute that is None matches any.

    module_path: absolute path of the PKCS#11 library. pin_source: the file that holds the PIN;
    a relative one is relative to the working directory. init_args: what C_Initialize gets in
    pReserved. mechanism: the only one to wrap with; None takes the best that works.
    """

    object: str
    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    slot_manufacturer: str | None = None
    slot_description: str | None = None
    slot_id: int | None = None
    module_path: Path
    pin_source: Path
    init_args: str | None = None
    mechanism: str | None = None

    @property
    def name(self) -> str:
        """The canonical path: fixed order, canonical encoding, no query. It is bound into every
        blob, so two URIs that differ in their path name two different wrappers.
        """
        parts = (
            ("token", self.token),
            ("manufacturer", self.manufacturer),
            ("serial", self.serial),
            ("model", self.model),
            ("slot-manufacturer", self.slot_manufacturer),
            ("slot-description", self.slot_description),
            ("slot-id", None if self.slot_id is None else str(self.slot_id)),
            ("object", self.object),
        )
        return f"{SCHEME}:" + ";".join(
            f"{name}={quote(value, safe=_PATH_SAFE)}" for name, value in parts if value is not None
        )

    @property
    def uri(self) -> str:
        """The whole URI, with the paths of the module and of the PIN's file."""
        module = quote(str(self.module_path), safe="/")
        pin = quote(str(self.pin_source), safe="/")
        whole = f"{self.name}?module-path={module}&pin-source=file:{pin}"
        for name, value in ((_INIT_ARGS, self.init_args), (_MECHANISM, self.mechanism)):
            if value is not None:
                whole += f"&{name}={quote(value, safe='/')}"
        return whole


def parse_pkcs11_uri(text: str) -> Pkcs11Uri:
    """Read a URI. Raises ConfigurationError, which names the attribute and how to mend it."""
    if len(text) > MAX_URI_LENGTH:
        raise ConfigurationError(f"The PKCS#11 URI is longer than {MAX_URI_LENGTH} characters.")
    scheme, colon, rest = text.partition(":")
    if not colon or scheme.lower() != SCHEME:
        raise ConfigurationError("A PKCS#11 URI begins with `pkcs11:`.")
    # Before all else, and wherever it stands: what is around it may be a part of the PIN.
    if _PIN_VALUE in rest.lower():
        raise ConfigurationError(
            f"PKCS#11 URI: `{_PIN_VALUE}` is refused: a PIN in a URI ends up in logs and process "
            "lists; write it to a file of its own (chmod 600) and say "
            "pin-source=file:/path/to/it."
        )
    path_text, mark, query_text = rest.partition("?")
    if mark and not query_text:
        raise ConfigurationError("The PKCS#11 URI's query (after `?`) is empty.")
    path = _path_attributes(path_text)
    _require_path(path)
    query = _query_attributes(query_text)
    return Pkcs11Uri(
        object=path["object"],
        token=path.get("token"),
        manufacturer=path.get("manufacturer"),
        serial=path.get("serial"),
        model=path.get("model"),
        slot_manufacturer=path.get("slot-manufacturer"),
        slot_description=path.get("slot-description"),
        slot_id=_slot_id(path.get("slot-id")),
        module_path=_module_path(query.get("module-path")),
        pin_source=_pin_source(query.get("pin-source")),
        init_args=query.get(_INIT_ARGS),
        mechanism=query.get(_MECHANISM),
    )


def _path_attributes(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for position, part in enumerate(text.split(";"), start=1) if text else ():
        name, equals, value = part.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"PKCS#11 URI: path attribute number {position} is not `name=value`."
            )
        if name in _PATH_REFUSED:
            raise ConfigurationError(f"PKCS#11 URI: `{name}`: {_PATH_REFUSED[name]}.")
        if name not in _PATH_LIMITS:
            raise ConfigurationError(
                f"PKCS#11 URI: unknown path attribute `{name}`; known are "
                f"{', '.join(_PATH_LIMITS)}. (module-path and pin-source stand after `?`.)"
            )
        _refuse_duplicate(name, found)
        found[name] = _decode(name, value, _PATH_VALUE, _PATH_LIMITS[name])
    return found


def _query_attributes(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for position, part in enumerate(text.split("&"), start=1) if text else ():
        name, equals, value = part.partition("=")
        if name == "module-name":
            raise ConfigurationError(
                "PKCS#11 URI: `module-name`: name the library itself, by module-path=/path/to/it."
            )
        if not equals or name not in _QUERY_NAMES:
            raise ConfigurationError(
                f"PKCS#11 URI: query attribute number {position} is none of "
                f"{', '.join(_QUERY_NAMES)}."
            )
        _refuse_duplicate(name, found)
        found[name] = _decode(name, value, _QUERY_VALUE, MAX_URI_LENGTH)
    return found


def _refuse_duplicate(name: str, found: Mapping[str, str]) -> None:
    if name in found:
        raise ConfigurationError(f"PKCS#11 URI: `{name}` stands there twice; keep one.")


def _decode(name: str, value: str, grammar: re.Pattern[str], limit: int) -> str:
    if not value:
        raise ConfigurationError(f"PKCS#11 URI: `{name}` is empty.")
    if not grammar.fullmatch(value):
        raise ConfigurationError(
            f"PKCS#11 URI: `{name}` holds a character that must be percent-encoded (RFC 7512)."
        )
    raw = unquote_to_bytes(value)
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"PKCS#11 URI: `{name}` is not UTF-8 when decoded.") from None
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in decoded):
        raise ConfigurationError(f"PKCS#11 URI: `{name}` holds a control character.")
    if len(raw) > limit:
        raise ConfigurationError(f"PKCS#11 URI: `{name}` is longer than {limit} bytes.")
    return decoded


def _require_path(path: Mapping[str, str]) -> None:
    if "object" not in path:
        raise ConfigurationError("PKCS#11 URI: `object` is missing; it is the master key's label.")
    if not {"token", "serial", "slot-id"} & path.keys():
        raise ConfigurationError(
            "PKCS#11 URI: say which token, by `token` (its label), `serial` or `slot-id`."
        )
    if path.get("type", "secret-key") != "secret-key":
        raise ConfigurationError("PKCS#11 URI: `type` can only be secret-key; leave it out.")


def _slot_id(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"0|[1-9][0-9]*", text) or int(text) >= 2**64:
        raise ConfigurationError("PKCS#11 URI: `slot-id` is a decimal number below 2^64.")
    return int(text)


def _module_path(text: str | None) -> Path:
    if text is None:
        raise ConfigurationError(
            "PKCS#11 URI: `module-path` is missing; name the HSM's library: "
            "?module-path=/path/to/module.so"
        )
    if not text.startswith("/"):
        raise ConfigurationError("PKCS#11 URI: `module-path` must be an absolute path.")
    return Path(text)


def _pin_source(text: str | None) -> Path:
    if text is None:
        raise ConfigurationError(
            "PKCS#11 URI: `pin-source` is missing; name the file that holds the PIN: "
            "pin-source=file:/path/to/it"
        )
    return pin_source(text)


def pin_source(text: str) -> Path:
    """The file of a `pin-source` (RFC 7512 section 2.3). Raises ConfigurationError."""
    if not text.startswith("file:"):
        raise ConfigurationError("PKCS#11 URI: `pin-source` must be file:/path/to/the/pin.")
    path = text.removeprefix("file:")
    if path.startswith("//"):
        # file:///path has an empty host (RFC 8089, section 2); any other host is not this machine.
        path = path.removeprefix("//")
        if not path.startswith("/") or path.startswith("//"):
            raise ConfigurationError("PKCS#11 URI: `pin-source` must not name a host.")
    if not path or path.endswith("/"):
        raise ConfigurationError("PKCS#11 URI: `pin-source` must name a file: file:/path/to/it.")
    return Path(path)
