"""The state folder of `dev`: a SoftHSM token, a database, a CA with a profile for each role.

DEV            the mark, and the lock that keeps a second server out
hsm/           SoftHSM's token and PIN          db/      the database
hsmd/          the HSM process: socket, record, settings
hsm-audit/     the token and PIN of the audit log's signing key; verifier-key: its public half
audit/         the audit log                    pki/     the throw-away CA
policy/        Cedar policies, yours to edit    profiles/  one client profile for each role
simulator/     the Anthropic simulator's certificate and log

A start that is broken off, wherever, is mended by the next one.
"""

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ironwork_audit.tlog import VerifierKey
from ironwork_hsm import KeyMissing
from ironwork_hsm.pkcs11.softhsm import (
    SoftHsmToken,
    config_environment,
    create_token,
    token_uri,
    use_config,
)
from ironwork_server import store
from ironwork_server.access.policy import write_default_policies
from ironwork_server.access.rules import DEFAULT_RULES
from ironwork_server.app.audit_key import create_audit_key, show_audit_key
from ironwork_server.app.dev.hsmd import create_first
from ironwork_server.app.devpki import DEV_TRUST_DOMAIN, DevCa, write_client_profile
from ironwork_server.app.settings import Settings, validated
from ironwork_server.app.startup import StartupError

MARK = "DEV"
# `serve` refuses tokens whose label begins like this.
TOKEN_LABEL = "ironwork-dev"  # noqa: S105  a label, no password
AUDIT_TOKEN_LABEL = "ironwork-dev-audit"  # noqa: S105  likewise
VERIFIER_KEY = "verifier-key"
ORIGIN = "ironwork.dev/server"
WORKSPACE = "acme"
# Profile name, SPIFFE path, workspace that the profile asks for.
PROFILES = (
    ("admin", f"/workspace/{WORKSPACE}/key-admin/alice", WORKSPACE),
    ("agent", f"/workspace/{WORKSPACE}/agent/coder", WORKSPACE),
    ("auditor", "/auditor/olivia", None),
    # Another company's: for seeing that it is refused.
    ("stranger", "/workspace/globex/agent/spy", WORKSPACE),
)


@dataclass(frozen=True, slots=True)
class DevState:
    """An open state folder. Holds its lock until the process ends or close() is called."""

    folder: Path
    ca: DevCa
    token: SoftHsmToken
    audit_token: SoftHsmToken
    lock: int

    @property
    def store_url(self) -> str:
        """The database."""
        return f"sqlite:///{self.folder / 'db' / 'keys.db'}"

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self.lock)


async def open_state(folder: Path) -> DevState:
    """Open the folder, making what is missing. Errors: StartupError, and those of the parts."""
    folder = folder.resolve()  # noqa: ASYNC240  nothing is served yet
    lock = _take(folder)
    for name in ("db", "audit", "pki", "policy", "profiles", "simulator"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    token = await _token(folder)
    audit_token = _audit_token(folder)
    # The master key's token is the HSM process's alone.
    use_config(audit_token.config)
    state = DevState(folder, _authority(folder / "pki"), token, audit_token, lock)
    key = await _audit_key(
        settings_of(state, hsm=token.uri, listen="127.0.0.1:0", log_level="info")
    )
    (folder / VERIFIER_KEY).write_text(f"{key}\n")
    store.upgrade(state.store_url)
    store.mark(state.store_url, store.DEV)
    if not any((folder / "policy").glob("*.cedar")):
        write_default_policies(folder / "policy")
    server = state.ca.server_certificate()
    server.write(folder / "pki" / "server.pem", folder / "pki" / "server-key.pem")
    return state


def settings_of(state: DevState, *, hsm: str, listen: str, log_level: str) -> Settings:
    """The settings of a dev server. hsm: the HSM process' URI. Errors: SettingsError."""
    pki = state.folder / "pki"
    return validated(
        {
            "listen": listen,
            "log_level": log_level,
            "drain_s": 5,
            "tls": {
                "certificate": pki / "server.pem",
                "private_key": pki / "server-key.pem",
                "client_ca": pki / "ca.pem",
            },
            "identity": {
                "trust_domain": DEV_TRUST_DOMAIN,
                "rules": [{"path": rule.path, "role": rule.role} for rule in DEFAULT_RULES],
            },
            "policy": {"folder": state.folder / "policy"},
            "master_key": {"uris": [hsm]},
            "store": {"url": state.store_url},
            "audit": {
                "folder": state.folder / "audit",
                "origin": ORIGIN,
                "signing_key": state.audit_token.uri,
            },
            "metrics": {"listen": "127.0.0.1:0", "workspaces": [WORKSPACE]},
        }
    )


def write_profiles(state: DevState, target: str) -> None:
    """One client profile for each role, with a fresh certificate."""
    for name, path, workspace in PROFILES:
        write_client_profile(
            state.folder / "profiles",
            name,
            state.ca.client_certificate(f"spiffe://{DEV_TRUST_DOMAIN}{path}"),
            state.ca,
            target=target,
            workspace=workspace,
            server_name="localhost",
        )


def _take(folder: Path) -> int:
    mark = folder / MARK
    if folder.exists() and not mark.exists() and not _empty(folder):
        raise StartupError(
            f"{folder} holds something else: give --state a new or empty folder, or one that"
            " `dev` made."
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    lock = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StartupError(
            f"{folder} is in use by another server: stop that one, or give --state another folder."
        ) from None
    return lock


def _empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


async def _token(state: Path) -> SoftHsmToken:
    folder = state / "hsm"
    # The database is made after the tokens and the keys in them.
    if (state / "db" / "keys.db").exists():
        return _existing(folder, TOKEN_LABEL, "master")
    # What a start that was broken off left behind may be half a token, and wraps nothing yet.
    shutil.rmtree(folder, ignore_errors=True)
    token = create_token(folder, TOKEN_LABEL)
    await create_first(state / "hsmd", token)
    return token


def _audit_token(state: Path) -> SoftHsmToken:
    """A token of its own: whoever may unwrap keys may not sign the log."""
    folder = state / "hsm-audit"
    if (state / "db" / "keys.db").exists() and folder.exists():
        return _existing(folder, AUDIT_TOKEN_LABEL, "checkpoints")
    shutil.rmtree(folder, ignore_errors=True)
    return create_token(folder, AUDIT_TOKEN_LABEL, object_label="checkpoints")


async def _audit_key(settings: Settings) -> VerifierKey:
    """The signing key, which the first start makes."""
    try:
        return await show_audit_key(settings, settings.audit.origin)
    except KeyMissing:
        return await create_audit_key(settings)


def _existing(folder: Path, label: str, object_label: str) -> SoftHsmToken:
    pin, config = folder / "pin", folder / "softhsm2.conf"
    return SoftHsmToken(
        label=label,
        uri=token_uri(label, object_label, pin),
        config=config,
        pin_file=pin,
        so_pin_file=folder / "so-pin",
        env=config_environment(config),
    )


def _authority(folder: Path) -> DevCa:
    try:
        return DevCa.load(folder)
    except OSError:
        ca = DevCa.create()
        ca.save(folder)
        return ca
