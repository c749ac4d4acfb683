"""The service's settings: one TOML file, then `IRONWORK_*` over it. Unknown names are errors.

`IRONWORK_TLS__CERTIFICATE=/etc/…` sets `tls.certificate`; lists and tables are written as TOML:
`IRONWORK_MASTER_KEY__URIS=["pkcs11:…"]`. Only the way to the upstream can be set: it is Anthropic.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ironwork_audit import fits
from ironwork_audit.tlog import KeyType, VerifierKey
from ironwork_audit.witness import checked_url
from ironwork_server.app.startup import SettingsError
from ironwork_server.core.routes import DEFAULT_GROUPS, KNOWN_GROUPS
from ironwork_server.custody.data_key_cache import CacheBounds
from ironwork_server.store import StoreRefused, sqlite_path
from ironwork_server.upstream.proxy import UpstreamProxy

PREFIX = "IRONWORK_"
# Read by other programs of ours, and by the command line itself.
NOT_SETTINGS = frozenset({"IRONWORK_PROFILE", "IRONWORK_CONFIG"})
MAX_FILE_BYTES = 1024 * 1024
MAX_WITNESSES = 16
_LISTEN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]{1,5}")


def _path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path holds no NUL")
    return path


PathName = Annotated[Path, AfterValidator(_path)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
# AddKey answers 10 MB of text with the field's name and the mend, so it has to arrive.
MAX_MESSAGE_KIB = 11 * 1024
# The longest that a client of ours sends, a request's head, has some 70 KiB.
MIN_MESSAGE_KIB = 256


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Section):
    """Files, reloaded when they change. Mutual TLS is always on."""

    certificate: PathName
    private_key: PathName
    client_ca: PathName


class Rule(_Section):
    """Maps a SPIFFE path to a role and a workspace: see access/rules.py."""

    path: str
    role: str


class Identity(_Section):
    trust_domain: str
    rules: tuple[Rule, ...] = Field(min_length=1)


class Policy(_Section):
    """A folder of Cedar files, reloaded when they change."""

    folder: PathName


class MasterKey(_Section):
    """The first URI wraps, all unwrap."""

    uris: tuple[str, ...] = Field(min_length=1)


class BreakGlass(_Section):
    """recipient: a file with the offline public key, for which a copy of each data key is kept."""

    recipient: PathName | None = None


class Store(_Section):
    url: str

    @field_validator("url")
    @classmethod
    def _is_usable(cls, url: str) -> str:
        try:
            sqlite_path(url)
        except StoreRefused as refused:
            raise ValueError(refused.message) from None
        return url

    @property
    def path(self) -> Path:
        """The database file."""
        return sqlite_path(self.url)


class Witness(_Section):
    """Who signs the log's checkpoints beside us. key: its verifier key, name+hash+base64."""

    url: str
    key: str

    @field_validator("url")
    @classmethod
    def _is_usable(cls, url: str) -> str:
        return checked_url(url)

    @field_validator("key")
    @classmethod
    def _is_a_witness(cls, key: str) -> str:
        parsed = VerifierKey.parse(key)
        if parsed.type is not KeyType.COSIGNATURE_V1:
            raise ValueError("not a witness's verifier key (cosignature/v1, type 0x04)")
        if not fits("witness", parsed.name):
            # Its alarms could not be put on record.
            raise ValueError("a witness's name is visible ASCII, at most 255 characters")
        return key


class Audit(_Section):
    """origin: the log's name, stable for the life of the folder. signing_key: the URI of the key
    that signs its checkpoints, in a token and under a PIN of its own. commands_folder: the log of
    operators' commands, which run beside a server that holds its own. witness_quorum: so
    many of the witnesses make a checkpoint a witnessed one.
    """

    folder: PathName
    commands_folder: PathName | None = None
    signing_key: str | None = None
    origin: str = Field(pattern=r"^[a-z0-9][a-z0-9./_-]{0,127}$")
    witnesses: tuple[Witness, ...] = Field(default=(), max_length=MAX_WITNESSES)
    witness_quorum: int = Field(default=1, ge=1, le=MAX_WITNESSES)

    @model_validator(mode="after")
    def _can_be_witnessed(self) -> Self:
        names = {VerifierKey.parse(witness.key).name for witness in self.witnesses}
        if len(names) < len(self.witnesses):
            raise ValueError("each witness is named once")
        if self.witnesses and self.witness_quorum > len(self.witnesses):
            raise ValueError("witness_quorum is larger than the number of witnesses")
        return self


class Limits(_Section):
    """Per process. Defaults suit a few hundred agents."""

    streams_per_principal: Count = 256
    streams_per_workspace: Count = 1024
    requests_per_principal: Count = 256
    requests_per_workspace: Count = 1024
    unary_per_principal: Count = 128
    unary_per_workspace: Count = 256
    rate_per_principal: Count = 200
    max_keys: Count = 100
    streams_per_connection: Count = 256
    message_kib: int = Field(default=MAX_MESSAGE_KIB, ge=MIN_MESSAGE_KIB, le=MAX_MESSAGE_KIB)


class Streams(_Section):
    """Bounds of a WithKey stream."""

    age_s: Seconds = 3600
    upload_stall_s: Seconds = 60
    write_stall_s: Seconds = 300


class Memory(_Section):
    """overwrite_freed: start the process anew with an allocator that overwrites what it frees."""

    overwrite_freed: bool = True


class DataKeyCache(_Section):
    """Off unless both bounds are set: see docs/security.md."""

    max_age_s: Annotated[float, Field(gt=0, le=300)] | None = None
    max_uses: Annotated[int, Field(ge=2, le=10_000)] | None = None
    max_entries: Annotated[int, Field(ge=1, le=10_000)] = 256

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if (self.max_age_s is None) != (self.max_uses is None):
            raise ValueError("max_age_s and max_uses are set together, or neither")
        return self

    @property
    def bounds(self) -> CacheBounds | None:
        """None where data keys are not kept."""
        if self.max_age_s is None or self.max_uses is None:
            return None
        return CacheBounds(self.max_age_s, self.max_uses, self.max_entries)


class Metrics(_Section):
    """listen: '' is off. workspaces: those whose tokens are told apart."""

    listen: str = ""
    workspaces: tuple[str, ...] = Field(default=(), max_length=100)

    @field_validator("listen")
    @classmethod
    def _is_address(cls, listen: str) -> str:
        return listen_address(listen) if listen else ""


class Api(_Section):
    """Which groups of Anthropic's API agents may use; the Admin API never."""

    groups: tuple[str, ...] = tuple(sorted(DEFAULT_GROUPS))

    @field_validator("groups")
    @classmethod
    def _are_known(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        if not KNOWN_GROUPS.issuperset(groups):
            raise ValueError(f"the groups that there are: {', '.join(sorted(KNOWN_GROUPS))}")
        return groups


class Upstream(_Section):
    """The way to Anthropic; whom it leads to is no setting."""

    proxy: str | None = None
    proxy_ca: PathName | None = None
    proxy_credentials: PathName | None = None

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if self.proxy is None and (self.proxy_ca or self.proxy_credentials):
            raise ValueError("proxy_ca and proxy_credentials are for a proxy; name it in proxy")
        self.connect_proxy()
        return self

    def connect_proxy(self) -> UpstreamProxy | None:
        """The proxy; None where there is none."""
        if self.proxy is None:
            return None
        return UpstreamProxy.parse(
            self.proxy, ca_file=self.proxy_ca, credentials_file=self.proxy_credentials
        )


def listen_address(text: str) -> str:
    """The same text. Raises ValueError where it is no address to listen on."""
    if not _LISTEN.fullmatch(text) or int(text.rpartition(":")[2]) > 65535:
        raise ValueError("write ADDRESS:PORT, such as 127.0.0.1:7443 or [::1]:7443")
    return text


class Settings(_Section):
    """Everything that `serve` needs to know."""

    listen: str = "127.0.0.1:7443"
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
    upstream: Upstream = Upstream()
    memory: Memory = Memory()
    data_key_cache: DataKeyCache = DataKeyCache()
    metrics: Metrics = Metrics()
    break_glass: BreakGlass = BreakGlass()

    @field_validator("listen")
    @classmethod
    def _is_address(cls, listen: str) -> str:
        return listen_address(listen)


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file, put the environment over it, check everything. Errors: SettingsError."""
    values = _read_file(path) if path is not None else {}
    variables = _overlay(values, environ)
    return validated(values, variables)


def validated(values: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> Settings:
    """Settings from a tree of values. variables: setting to the variable that gave it, for the
    errors' texts. Errors: SettingsError.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error, variables or {})) from None


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
    except (ValueError, RecursionError):
        # The parser's text could quote the line, and with it a value.
        raise SettingsError(f"{path}: is not TOML.") from None


def _overlay(values: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Put the variables over values; gives the names of the settings that they set."""
    variables = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        *sections, last = name.removeprefix(PREFIX).lower().split("__")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise SettingsError(f"{name}: {section} is not a section.")
        place[last] = _parse_variable(environ[name])
        variables[".".join((*sections, last))] = name
    return variables


def _parse_variable(text: str) -> object:
    """A list or a table where the text is one in TOML; else the text: an IPv6 address begins like
    a list.
    """
    if not text.startswith(("[", "{")):
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


_PROBLEMS = {
    "extra_forbidden": "is not a setting",
    "missing": "is missing",
    "tuple_type": 'is a list; in a variable it is written as TOML: ["…", "…"]',
    "model_type": "is a section; in a variable it is written as a TOML table",
    "model_attributes_type": "is a section; in a variable it is written as a TOML table",
}


def _explain(error: ValidationError, variables: Mapping[str, str]) -> str:
    """One line for each wrong setting: its name and what is wrong, never its value."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        what = _PROBLEMS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        variable = f" ({variables[name]})" if name in variables else ""
        lines.append(f"{name}{variable}: {what}")
    return "\n".join(lines)
