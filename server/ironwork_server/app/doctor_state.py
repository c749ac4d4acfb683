"""Doctor: the database, the audit log and the clock."""

import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ironwork_audit.tlog import BadNote, VerifierKey
from ironwork_audit.tlog.signed import SignatureRefused, SignedCheckpoint, open_checkpoint
from ironwork_hsm import HsmError
from ironwork_server import store
from ironwork_server.app import doctor_log
from ironwork_server.app.audit_key import open_audit_signer
from ironwork_server.app.doctor_report import Finding, fail, ok, warn
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError
from ironwork_server.core.errors import IronworkError
from ironwork_server.custody.checkpoints import verifier_key

_GROUP_OR_OTHERS = 0o077
LOW_SPACE_BYTES = 1 << 30
MIN_SPACE_BYTES = 64 << 20
# Files of ours that are newer than the clock's time by more than this were not written in it.
CLOCK_SLACK_S = 5.0
MAX_CHECKPOINT_BYTES = 64 * 1024
# adjtimex(2): the kernel's word that nobody sets its clock.
_STA_UNSYNC = 0x0040
_STATUS_OFFSET = 40
_TIMEX_BYTES = 208


def database(settings: Settings) -> Iterator[Finding]:
    """Reachable, migrated, not a dev one, its owner's alone."""
    path, url = settings.store.path, settings.store.url
    try:
        status = store.status(url)
        mark = store.marker(url)
    except IronworkError as error:
        yield fail("store", f"{error.message} ({error.reason})", "See the reason in docs/api.md.")
        return
    if status.pending or status.current is None:
        yield fail(
            "store",
            f"schema {status.current or 'none'}, this version's is {status.head}",
            "ironwork-server db upgrade",
        )
        return
    yield ok("store", f"{path}: schema {status.current}")
    if mark == store.DEV:
        yield fail(
            "store.dev", "made by `ironwork-server dev`", "Begin with a database of your own."
        )
    yield from _private("store.file", path)
    yield from _private("store.folder", path.parent)
    yield from _space("store.space", path.parent)


def _private(check: str, path: Path) -> Iterator[Finding]:
    status = path.stat()
    if status.st_mode & _GROUP_OR_OTHERS:
        mode = "700" if path.is_dir() else "600"
        yield fail(check, f"{path} is open to group or others", f"chmod {mode} {path}")
    elif status.st_uid != os.geteuid():
        yield fail(
            check,
            f"{path} belongs to user {status.st_uid}, and this runs as {os.geteuid()}",
            "Run doctor as the user that serves, or chown it.",
        )
    else:
        yield ok(check, f"{path}: its owner's alone")


def _space(check: str, folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    says = f"{free / (1 << 20):,.0f} MiB free for {folder}"
    if free < MIN_SPACE_BYTES:
        yield fail(check, says, "Make room: on a full disk nothing is served.")
    elif free < LOW_SPACE_BYTES:
        yield warn(check, says, "Make room, or watch it: a call costs up to some 4 KB of the log.")
    else:
        yield ok(check, says)


async def audit_log(settings: Settings, locks: Path) -> list[Finding]:
    """The folder, whose it is, who holds it; its newest checkpoint, held against the entries, the
    store's heads and the witnesses.
    """
    folder = settings.audit.folder
    if not folder.is_dir():
        return [
            warn(
                "audit.folder",
                f"{folder} is not there yet",
                "The first command that writes to it makes it: ironwork-server audit-key create.",
            )
        ]
    found = [*_private("audit.folder", folder), *_space("audit.space", folder)]
    found += _holder(folder, locks)
    key, keys_findings = await _verifier_key(settings)
    found += keys_findings
    opened, checkpoint = _checkpoint(folder, key)
    found.append(checkpoint)
    found += doctor_log.heads(settings, None if opened is None else opened.checkpoint)
    if key is not None and opened is not None:
        found += doctor_log.witnesses(settings, key, opened, time.time())
    return found


def _holder(folder: Path, locks: Path) -> Iterator[Finding]:
    """By the kernel's table, so that the lock itself is left alone (proc(5), /proc/locks)."""
    try:
        inode = (folder / "lock").stat().st_ino
        lines = locks.read_text().splitlines()
    except OSError:
        yield ok("audit.lock", "held by nobody")
        return
    holders = [
        line.split()[4]
        for line in lines
        if " FLOCK " in line and line.split()[5].rpartition(":")[2] == str(inode)
    ]
    yield ok("audit.lock", f"held by process {holders[0]}" if holders else "held by nobody")


async def _verifier_key(settings: Settings) -> tuple[VerifierKey | None, list[Finding]]:
    try:
        signer = await open_audit_signer(settings)
    except (StartupError, HsmError) as error:
        mend = "Set audit.signing_key, or make the key: ironwork-server audit-key create."
        return None, [fail("audit.signing_key", str(error), mend)]
    try:
        key = verifier_key(settings.audit.origin, signer)
    finally:
        await signer.close()
    return key, [ok("audit.signing_key", f"{signer.name} ({signer.algorithm})")]


def _checkpoint(folder: Path, key: VerifierKey | None) -> tuple[SignedCheckpoint | None, Finding]:
    check = "audit.checkpoint"
    try:
        with (folder / "checkpoint").open("rb") as file:
            note = file.read(MAX_CHECKPOINT_BYTES)
    except FileNotFoundError:
        return None, ok(check, "none yet: the log has not been signed")
    except OSError as error:
        return None, fail(check, os.strerror(error.errno or 0), "Make the file readable.")
    if key is None:
        return None, warn(check, "not looked at: no key to check it by", "Mend the signing key.")
    try:
        opened = open_checkpoint(note, key)
    except (SignatureRefused, BadNote) as error:
        mend = "Find out who changed it: verify the log with `ironwork-audit verify`."
        return None, fail(check, str(error), mend)
    checkpoint = opened.checkpoint
    if doctor_log.root_at(folder, checkpoint.size) != checkpoint.root:
        mend = "Find out who changed the entries: `ironwork-audit verify` names the first."
        return opened, fail(check, "signed, but for other entries than those here", mend)
    return opened, ok(check, f"{checkpoint.size:,} entries, signed by audit.signing_key")


def clock(settings: Settings) -> Iterator[Finding]:
    """Certificates and the log's times rest on it."""
    paths = [settings.store.path, settings.audit.folder / "checkpoint"]
    newest = max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)
    if newest > time.time() + CLOCK_SLACK_S:
        yield fail(
            "clock",
            f"it is {newest - time.time():,.0f} s behind the newest file that was written here",
            "Set the clock; certificates would be taken for valid when they are not.",
        )
        return
    if _synchronised() is False:
        yield warn("clock", "the kernel says that nothing sets it", "Run chrony or ntpd.")
        return
    yield ok("clock", "not behind what was written here")


def _synchronised() -> bool | None:
    """By adjtimex(2), asking only. None where it cannot be asked."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return None
    return not ctypes.c_int.from_buffer(buffer, _STATUS_OFFSET).value & _STA_UNSYNC
