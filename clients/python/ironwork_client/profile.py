"""A profile: which server, as whom, for which workspace. One TOML file, no secrets in it.

    target = "127.0.0.1:7443"       # host:port of the server
    server_name = "localhost"       # optional: the name its certificate bears, if not the host
    ca = "ca.pem"                   # who signs the server's certificate
    certificate = "agent.pem"       # this identity (SPIFFE), PEM
    private_key = "agent-key.pem"   # its key, PEM
    workspace = "acme"              # optional for an auditor

Paths are relative to the profile's folder. The files are read anew for each channel, so that a
certificate that was renewed in place is taken up without a restart.
"""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

ENVIRONMENT: Final = "IRONWORK_PROFILE"
_REQUIRED: Final = ("target", "ca", "certificate", "private_key")
_OPTIONAL: Final = ("server_name", "workspace")
_MAX_BYTES: Final = 1 << 20
_TARGET = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}|unix:.+")
_WORKSPACE = re.compile(r"[a-z][a-z0-9-]{0,62}")
_NAME = re.compile(r"[a-z_]{1,40}")


class ProfileError(Exception):
    """A profile cannot be used. setting: the name that is wrong, empty where it is the file."""

    def __init__(self, message: str, *, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


@dataclass(frozen=True, slots=True)
class Profile:
    """Which server, as whom, for which workspace ('' where none is set)."""

    target: str
    ca: Path
    certificate: Path
    private_key: Path
    workspace: str = ""
    server_name: str = ""

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> "Profile":
        """The profile in path, or the default one. Raises ProfileError."""
        file = default_path() if path is None else Path(path)
        values = _checked(_parsed(file), file)
        folder = file.parent
        return cls(
            target=values["target"],
            ca=folder / values["ca"],
            certificate=folder / values["certificate"],
            private_key=folder / values["private_key"],
            workspace=values.get("workspace", ""),
            server_name=values.get("server_name", ""),
        )

    @property
    def parent(self) -> str:
        """`workspaces/{workspace}`. Raises ProfileError where the profile has no workspace."""
        if not self.workspace:
            raise ProfileError(
                'workspace: the profile names none; add a line like workspace = "acme".',
                setting="workspace",
            )
        return f"workspaces/{self.workspace}"

    def credentials(self) -> grpc.ChannelCredentials:
        """Mutual TLS from the files as they are now. Raises ProfileError."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read("ca", self.ca),
            private_key=_read("private_key", self.private_key),
            certificate_chain=_read("certificate", self.certificate),
        )

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when a file is replaced or rewritten; a file that is missing counts as zeros."""
        return tuple(_stamp(path) for path in (self.ca, self.certificate, self.private_key))


def default_path() -> Path:
    """IRONWORK_PROFILE, or ~/.config/ironwork/profile.toml."""
    chosen = os.environ.get(ENVIRONMENT, "")
    return Path(chosen) if chosen else Path.home() / ".config" / "ironwork" / "profile.toml"


def _parsed(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as source:
            text = source.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(
            f"{file}: the profile cannot be read ({error.strerror}). Name one with --profile FILE"
            f" or {ENVIRONMENT}; a development server writes one for each role."
        ) from None
    if len(text) > _MAX_BYTES:
        raise ProfileError(f"{file}: the profile is larger than 1 MiB; is it the right file?")
    try:
        return tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise ProfileError(f"{file}: the profile is not UTF-8 text; is it a profile?") from None
    except tomllib.TOMLDecodeError:
        # The parser's text may quote the file, and the file may be a private key.
        raise ProfileError(f"{file}: the profile is not TOML; is it a profile?") from None


def _checked(values: dict[str, object], file: Path) -> dict[str, str]:
    known = (*_REQUIRED, *_OPTIONAL)
    for name in values:
        if name not in known:
            # What does not look like a setting may be anything, so it is not repeated.
            shown = name if _NAME.fullmatch(name) else "a line"
            raise ProfileError(
                f"{file}: {shown} is no setting of a profile; the settings are {', '.join(known)}.",
                setting=name if shown == name else "",
            )
    for name in _REQUIRED:
        if name not in values:
            raise ProfileError(f"{file}: {name} is missing; add it.", setting=name)
    checked: dict[str, str] = {}
    for name, value in values.items():
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ProfileError(
                f'{file}: {name} must be text in quotes, such as {name} = "…".', setting=name
            )
        checked[name] = value
    _check_forms(checked, file)
    return checked


def _check_forms(values: dict[str, str], file: Path) -> None:
    if not _TARGET.fullmatch(values["target"]):
        raise ProfileError(
            f'{file}: target must be host:port, such as "keys.example.com:7443", without a scheme.',
            setting="target",
        )
    if "workspace" in values and not _WORKSPACE.fullmatch(values["workspace"]):
        raise ProfileError(
            f'{file}: workspace must be the bare name, such as "acme": a lower-case'
            " letter, then at most 62 lower-case letters, digits and hyphens.",
            setting="workspace",
        )


def _read(setting: str, path: Path) -> bytes:
    try:
        with path.open("rb") as source:
            content = source.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(
            f"{setting}: {path} cannot be read ({error.strerror}); name a PEM file that this user"
            " may read.",
            setting=setting,
        ) from None
    # gRPC takes anything here and fails at the handshake, where the cause is no longer told.
    if len(content) > _MAX_BYTES or b"-----BEGIN " not in content:
        raise ProfileError(f"{setting}: {path} is not a PEM file.", setting=setting)
    return content


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
