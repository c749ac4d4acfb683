"""The state folder of `dev`: a SoftHSM token, a database, a CA with a profile for each role.

DEV            the mark, and the lock that keeps a second server out
hsm/           SoftHSM's tokens, the PIN of the master key's; db/  the database
hsm-audit/     the PIN of the token of the audit log's signing key; verifier-key: its public half
hsm-record/    the same of the HSM process' own record; hsmd/verifier-key: its public half
hsmd/          the HSM process: socket, record, settings
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

from ironwork_server import store
from ironwork_server.access.policy import write_default_policies
from ironwork_server.access.rules import DEFAULT_RULES
from ironwork_server.app.audit_key import show_audit_key
from ironwork_server.app.dev.hsmd import create_keys
from ironwork_server.app.dev.tokens import DevTokens, existing_tokens, make_tokens
from ironwork_server.app.devpki import DEV_TRUST_DOMAIN, DevCa, write_client_profile
from ironwork_server.app.settings import Settings, validated
from ironwork_server.app.startup import StartupError

MARK = "DEV"
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
    tokens: DevTokens
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
    tokens = await _tokens(folder)
    state = DevState(folder, _authority(folder / "pki"), tokens, lock)
    store.upgrade(state.store_url)
    store.mark(state.store_url, store.DEV)
    if not any((folder / "policy").glob("*.cedar")):
        write_default_policies(folder / "policy")
    server = state.ca.server_certificate()
    server.write(folder / "pki" / "server.pem", folder / "pki" / "server-key.pem")
    return state


def settings_of(state: DevState, *, hsm: str, listen: str, log_level: str) -> Settings:
    """The settings of a dev server. hsm: the HSM process' URI, for the master key and for the key
    that signs the log. Errors: SettingsError.
    """
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
                "signing_key": hsm,
            },
            "metrics": {"listen": "127.0.0.1:0", "workspaces": [WORKSPACE]},
        }
    )


async def write_verifier_key(state: DevState, settings: Settings) -> None:
    """What verifies the log, as the running HSM process says. Errors: StartupError, HsmError."""
    key = await show_audit_key(settings, settings.audit.origin)
    (state.folder / VERIFIER_KEY).write_text(f"{key}\n")


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


async def _tokens(state: Path) -> DevTokens:
    # The database is made after the tokens and the keys in them: without it they wrap nothing yet.
    if (state / "db" / "keys.db").exists():
        return existing_tokens(state)
    shutil.rmtree(state / "hsmd", ignore_errors=True)
    tokens = make_tokens(state)
    await create_keys(state / "hsmd", tokens)
    return tokens


def _authority(folder: Path) -> DevCa:
    try:
        return DevCa.load(folder)
    except OSError:
        ca = DevCa.create()
        ca.save(folder)
        return ca
