"""The HSM process' settings: one TOML file, read strictly. Unknown names are errors."""

import pwd
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ironwork_hsm.apart import refuse_shared
from ironwork_hsm.interface import ConfigurationError
from ironwork_hsm.remote.place import checked_path
from ironwork_hsm.remote.wire import MAX_KEYS

MAX_FILE_BYTES: Final = 65536
_ORIGIN: Final = re.compile(r"[a-z0-9][a-z0-9./_-]{0,127}")
_SECTIONS: Final = ("record", "limits")
# name: default, least, most.
_LIMITS: Final[Mapping[str, tuple[float, float, float]]] = {
    "connections": (16, 1, 1024),
    "pipelined": (256, 1, 4096),
    "operations_per_s": (1000, 1, 1_000_000),
    "burst": (2000, 1, 1_000_000),
    "idle_s": (600, 1, 86_400),
    "deadline_s": (3, 0.1, 60),
    "open_s": (6, 1, 120),
    "lanes": (4, 1, 64),
    "queue": (1024, 1, 4096),
}
_TOP: Final = ("socket", "allowed_uids", "backends", "signer", "state", "overwrite_freed")


@dataclass(frozen=True, slots=True)
class Bounds:
    """connections: at once. pipelined: requests without an answer on one of them. operations_per_s,
    burst: for each uid (signatures apart). idle_s: a connection without requests. deadline_s: of
    an operation. open_s: of a device's start. lanes: calls inside a device at once. queue: calls
    waiting for one.
    """

    connections: int
    pipelined: int
    operations_per_s: float
    burst: float
    idle_s: float
    deadline_s: float
    open_s: float
    lanes: int
    queue: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the process needs to know. backends: the first wraps, all unwrap. signer: of
    the server's log. state: a folder for what is remembered over restarts. record_key: the URI of
    the key that signs this process' own record; None: it is not signed.
    """

    socket: Path
    allowed_uids: frozenset[int]
    backends: tuple[str, ...]
    signer: str | None
    state: Path
    overwrite_freed: bool
    record_folder: Path
    record_origin: str
    record_key: str | None
    bounds: Bounds


def load(path: Path) -> Settings:
    """Read the file. Raises ConfigurationError, which names each setting and never its value."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path}: is larger than {MAX_FILE_BYTES} bytes.")
    try:
        values = tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{path}: is not TOML.") from None
    return from_values(values)


def from_values(values: Mapping[str, object]) -> Settings:
    """Settings from a tree of values. Raises ConfigurationError."""
    _refuse_unknown(values, (*_TOP, *_SECTIONS), "")
    record = _section(values, "record")
    limits = _section(values, "limits")
    _refuse_unknown(record, ("folder", "origin", "signing_key"), "record.")
    _refuse_unknown(limits, tuple(_LIMITS), "limits.")
    backends = _backends(values.get("backends"))
    signer = _optional(values, "signer", "")
    return Settings(
        socket=checked_path(_path(values, "socket", "")),
        allowed_uids=_uids(values.get("allowed_uids")),
        backends=backends,
        signer=signer,
        state=_path(values, "state", ""),
        overwrite_freed=_flag(values.get("overwrite_freed", True), "overwrite_freed"),
        record_folder=_path(record, "folder", "record."),
        record_origin=_origin(record.get("origin")),
        record_key=_record_key(record, backends, signer),
        bounds=_bounds(limits),
    )


def _refuse_unknown(values: Mapping[str, object], known: Sequence[str], prefix: str) -> None:
    for name in values:
        if name not in known:
            raise ConfigurationError(
                f"{prefix}{name} is not a setting; there are: {', '.join(known)}."
            )


def _section(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = values.get(name, {})
    if not isinstance(section, dict):
        raise ConfigurationError(f"{name} is a section: write [{name}].")
    return section


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigurationError(f"{name} is missing, or not a string.")
    return value


def _path(values: Mapping[str, object], name: str, prefix: str) -> Path:
    path = Path(_text(values.get(name), prefix + name))
    if not path.is_absolute():
        raise ConfigurationError(f"{prefix}{name} must be an absolute path.")
    return path


def _optional(values: Mapping[str, object], name: str, prefix: str) -> str | None:
    return None if values.get(name) is None else _text(values[name], prefix + name)


def _record_key(
    record: Mapping[str, object], backends: Sequence[str], signer: str | None
) -> str | None:
    """Apart from the master keys', and from the one that signs whatever a client asks it to."""
    uri = _optional(record, "signing_key", "record.")
    if uri is None:
        return None
    if uri.partition(":")[0].lower() == "unix":
        raise ConfigurationError("record.signing_key is a device's URI, not this process' own.")
    if signer is not None:
        if uri.partition("?")[0] == signer.partition("?")[0]:
            raise ConfigurationError("record.signing_key names the key of signer.")
        refuse_shared("record.signing_key", uri, whose="the signer's", other=signer)
    for backend in backends:
        refuse_shared("record.signing_key", uri, whose="a backend's", other=backend)
    return uri


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} is true or false.")
    return value


def _uids(value: object) -> frozenset[int]:
    if not isinstance(value, list) or not value:
        raise ConfigurationError(
            "allowed_uids is missing: list the users (names or numbers) whose processes may ask."
        )
    return frozenset(_uid(item) for item in value)


def _uid(item: object) -> int:
    if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**32:
        return item
    if isinstance(item, str):
        try:
            return pwd.getpwnam(item).pw_uid
        except KeyError:
            raise ConfigurationError(
                "allowed_uids names a user that this machine does not know."
            ) from None
    raise ConfigurationError("allowed_uids holds users' names and numbers only.")


def _backends(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_KEYS:
        raise ConfigurationError(
            f"backends is missing: a list of 1 to {MAX_KEYS} URIs; the first wraps, all unwrap."
        )
    return tuple(_text(item, "backends") for item in value)


def _origin(value: object) -> str:
    origin = _text(value, "record.origin")
    if not _ORIGIN.fullmatch(origin):
        raise ConfigurationError("record.origin: [a-z0-9][a-z0-9./_-]*, at most 128 characters.")
    return origin


def _bounds(limits: Mapping[str, object]) -> Bounds:
    found: dict[str, float] = {}
    for name, (default, least, most) in _LIMITS.items():
        value = limits.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError(f"limits.{name} is a number.")
        if not least <= value <= most:
            raise ConfigurationError(f"limits.{name} is from {least:g} to {most:g}.")
        found[name] = value
    return Bounds(
        connections=int(found["connections"]),
        pipelined=int(found["pipelined"]),
        operations_per_s=found["operations_per_s"],
        burst=found["burst"],
        idle_s=found["idle_s"],
        deadline_s=found["deadline_s"],
        open_s=found["open_s"],
        lanes=int(found["lanes"]),
        queue=int(found["queue"]),
    )
