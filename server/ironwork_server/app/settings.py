"""The service's settings: one TOML file, then `IRONWORK_*` over it. Unknown names are errors.

`IRONWORK_TLS__CERTIFICATE=/etc/…` sets `tls.certificate`; lists and tables are written as TOML:
`IRONWORK_MASTER_KEY__URIS=["pkcs11:…"]`. There is no setting for the upstream: it is Anthropic.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

PREFIX = "IRONWORK_"
# Read by other programs of ours, and by the command line itself.
NOT_SETTINGS = frozenset({"IRONWORK_PROFILE", "IRONWORK_CONFIG"})
MAX_FILE_BYTES = 1024 * 1024

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class SettingsError(Exception):
    """Settings that cannot be used; the text names each setting, what is wrong, and the mend."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Section):
    """Files, reloaded when they change. Mutual TLS is always on."""

    certificate: Path
    private_key: Path
    client_ca: Path


class Rule(_Section):
    """Maps a SPIFFE path to a role and a workspace: see access/rules.py."""

    path: str
    role: str


class Identity(_Section):
    trust_domain: str
    rules: tuple[Rule, ...] = Field(min_length=1)


class Policy(_Section):
    """A folder of Cedar files, reloaded when they change."""

    folder: Path


class MasterKey(_Section):
    """The first URI wraps, all unwrap."""

    uris: tuple[str, ...] = Field(min_length=1)


class Store(_Section):
    url: str

    @field_validator("url")
    @classmethod
    def _is_sqlite(cls, url: str) -> str:
        if not url.startswith("sqlite:///"):
            raise ValueError("write sqlite:///relative/path or sqlite:////absolute/path")
        return url

    @property
    def path(self) -> Path:
        """The database file."""
        return Path(self.url.removeprefix("sqlite:///"))


class Audit(_Section):
    """origin: the log's name, stable for the life of the folder."""

    folder: Path
    origin: str = Field(pattern=r"^[a-z0-9][a-z0-9./_-]{0,127}$")


class Limits(_Section):
    """Per process. Defaults suit a few hundred agents."""

    streams_per_principal: Count = 256
    streams_per_workspace: Count = 1024
    requests_per_principal: Count = 256
    requests_per_workspace: Count = 1024
    unary_per_principal: Count = 16
    unary_per_workspace: Count = 64
    max_keys: Count = 100
    streams_per_connection: Count = 256


class Streams(_Section):
    """Bounds of a WithKey stream."""

    age_s: Seconds = 3600
    upload_stall_s: Seconds = 60
    write_stall_s: Seconds = 300


class Api(_Section):
    """Which groups of Anthropic's API agents may use; the Admin API never."""

    groups: tuple[str, ...] = ("messages", "count_tokens", "batches", "models", "files")


class Settings(_Section):
    """Everything that `serve` needs to know."""

    listen: str = Field(
        default="127.0.0.1:7443", pattern=r"^(\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]{1,5}$"
    )
    drain_s: Seconds = 30
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tls: Tls
    identity: Identity
    policy: Policy
    master_key: MasterKey
    store: Store
    audit: Audit
    limits: Limits = Limits()
    streams: Streams = Streams()
    api: Api = Api()


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file, put the environment over it, check everything. Errors: SettingsError."""
    values = _read_file(path) if path is not None else {}
    _overlay(values, environ)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(text) > MAX_FILE_BYTES:
        raise SettingsError(f"{path}: is larger than {MAX_FILE_BYTES} bytes.")
    try:
        return tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        where = getattr(error, "lineno", None)
        at = f", line {where}" if where else ""
        raise SettingsError(f"{path}{at}: is not TOML.") from None


def _overlay(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        *sections, last = name.removeprefix(PREFIX).lower().split("__")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise SettingsError(f"{name}: {section} is not a section.")
        place[last] = _parse_variable(name, environ[name])


def _parse_variable(name: str, text: str) -> object:
    if not text.startswith(("[", "{")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise SettingsError(f"{name}: a list or table is written as TOML.") from None


def _explain(error: ValidationError) -> str:
    """One line for each wrong setting: its name and what is wrong, never its value."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        what = {
            "extra_forbidden": "is not a setting",
            "missing": "is missing",
        }.get(problem["type"], problem["msg"])
        lines.append(f"{name}: {what}")
    return "\n".join(lines)
