"""Doctor: what the audit log's folder, the store and the log's witnesses say of each other.

All of it is read from files and the database, beside a running server too: the checkpoint first,
then the store's head, then the tiles, each of which only grows.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ironwork_audit.log.folder import ID
from ironwork_audit.select import BadEntry, stored, summary_of
from ironwork_audit.source import FolderSource, Unreadable, read_tile
from ironwork_audit.tlog import (
    BadNote,
    BadTile,
    Checkpoint,
    TileReader,
    VerifierKey,
    frontier_of,
)
from ironwork_audit.tlog.signed import (
    Cosignature,
    SignatureRefused,
    SignedCheckpoint,
    cosignature_of,
    open_checkpoint,
)
from ironwork_audit.witness import WITNESSED
from ironwork_server import store
from ironwork_server.app.doctor_report import Finding, fail, ok, warn
from ironwork_server.app.operator import commands_folder, commands_origin
from ironwork_server.app.settings import Settings
from ironwork_server.core.errors import IronworkError
from ironwork_server.core.values import LogHead
from ironwork_server.custody.head_guard import ORIGIN_TAKEN, ROLLED_BACK
from ironwork_server.journal.witness_files import FOLDER
from ironwork_server.journal.witnesses import LATE_S, Status

_HEAD: Final = "audit.head"
_QUORUM: Final = "audit.witnessed"
_MAX_NOTE_BYTES: Final = 64 * 1024
# A checkpoint's own signing is in the log too, and is not what one waits for.
_SIGNING: Final = "hsm.sign"
_ASK: Final = "See `witness.failing` in the service's log, and that it knows this log's key."
_CONTRADICTED: Final = (
    "History was rewritten, or another folder was signed with this key: stop, keep both, and "
    "compare with `ironwork-audit verify --since`."
)


def root_at(folder: Path, size: int) -> bytes | None:
    """The root of the log's first `size` entries, by its tiles; None where they do not hold it."""
    source = FolderSource(folder)
    try:
        return frontier_of(size, TileReader(size, lambda tile: read_tile(source, tile))).root()
    except (Unreadable, BadTile):
        return None


def heads(settings: Settings, checkpoint: Checkpoint | None) -> Iterator[Finding]:
    """The log, and that of the commands, held against the store's heads (ADR 0027)."""
    yield _head(settings, _HEAD, settings.audit.folder, settings.audit.origin, checkpoint)
    commands = commands_folder(settings)
    if commands.is_dir():
        yield _head(settings, f"{_HEAD} (commands)", commands, commands_origin(settings), None)


def _head(
    settings: Settings, check: str, folder: Path, origin: str, checkpoint: Checkpoint | None
) -> Finding:
    try:
        found = store.newest_head(settings.store.url, origin)
    except IronworkError as error:
        return warn(check, f"the store's head cannot be read ({error.reason})", "See `store`.")
    if found is None:
        return _unknown(check, signed=checkpoint is not None)
    return _contradicted(check, folder, found) or _grown(check, found, checkpoint)


def _unknown(check: str, *, signed: bool) -> Finding:
    if not signed:
        return ok(check, "none in the store yet: the log has not been signed")
    says = "the store knows no head of this log, and takes whatever folder is started on"
    mend = "If the database was replaced, `ironwork-audit verify --since` a checkpoint kept apart."
    return warn(check, says, mend)


def _contradicted(check: str, folder: Path, found: LogHead) -> Finding | None:
    """What a start would refuse."""
    if _id(folder) != found.folder_id:
        mend = "Put the folder back, or begin a new one with a new origin (docs: Backup)."
        return fail(check, f"{ORIGIN_TAKEN}: the store knows another folder of this origin", mend)
    if root_at(folder, found.size) != found.root:
        mend = "Put the newest copy of the folder back; nothing starts on this one."
        says = f"{ROLLED_BACK}: it has not grown from the {found.size:,} entries that were signed"
        return fail(check, says, mend)
    return None


def _grown(check: str, found: LogHead, checkpoint: Checkpoint | None) -> Finding:
    if checkpoint is not None and checkpoint.size > found.size:
        says = f"the store's head has {found.size:,} entries, fewer than the checkpoint's"
        mend = "An older database was put back: name what it brought back, `reconcile --store`."
        return warn(check, says, mend)
    return ok(check, f"grown from the {found.size:,} entries that the store knows")


def _id(folder: Path) -> str | None:
    try:
        return (folder / ID).read_text("ascii").rstrip()
    except (OSError, ValueError):
        return None


def witnesses(
    settings: Settings, key: VerifierKey, newest: SignedCheckpoint, now: float
) -> Iterator[Finding]:
    """What each witness has signed, and whether a quorum of them has signed what is there.

    newest: the published checkpoint, checked by key. now: POSIX, s.
    """
    audit = settings.audit
    if not audit.witnesses:
        if len(newest.note.signatures) < 2:
            mend = "Keep checkpoints where this server cannot write, or have a witness sign them."
            yield warn("audit.witness", "UNWITNESSED: the log's own key could rewrite it", mend)
        return
    log = _Log(audit.folder, key, newest.checkpoint.size, now)
    keys = [VerifierKey.parse(witness.key) for witness in audit.witnesses]
    for witness in keys:
        yield log.of_witness(witness)
    yield log.of_quorum(keys, audit.witness_quorum)


class _Log:
    """One log, its key, the size of its newest checkpoint, and the time."""

    def __init__(self, folder: Path, key: VerifierKey, size: int, now: float) -> None:
        self._folder = folder
        self._key = key
        self._size = size
        self._now = now

    def of_witness(self, witness: VerifierKey) -> Finding:
        """What this one has signed last, as the server kept it."""
        check = f"audit.witness {witness.name}"
        try:
            opened = self._opened(f"{FOLDER}/{witness.key_id.hex()}", [witness])
        except FileNotFoundError:
            return warn(check, "has signed no checkpoint that was kept", _ASK)
        except (OSError, SignatureRefused, BadNote) as error:
            mend = "Find out who changed it; it is written anew with its next signature."
            return fail(check, f"what was kept as signed by it is not: {_says(error)}", mend)
        size, signed = opened.checkpoint.size, opened.cosignatures[0]
        if not self._holds(opened.checkpoint):
            says = f"it signed {size:,} entries that this log has not grown from"
            return fail(check, says, _CONTRADICTED)
        says = f"signed {size:,} of {self._size:,} entries, {self._age(signed):,.0f} s ago"
        late = self._waits(size)
        return ok(check, says) if late <= LATE_S else warn(check, says, _ASK)

    def of_quorum(self, keys: Sequence[VerifierKey], quorum: int) -> Finding:
        """Whether so many of them have signed one checkpoint, and nothing waits for that."""
        wanted = f"{quorum} of {len(keys)} witnesses"
        try:
            opened = self._opened(WITNESSED, [])
        except FileNotFoundError:
            if self._waits(0) <= LATE_S:
                return ok(_QUORUM, f"{wanted} have had less than {LATE_S:.0f} s")
            return fail(_QUORUM, f"UNWITNESSED: never signed by {wanted}", _ASK)
        except (OSError, SignatureRefused, BadNote) as error:
            mend = "Find out who changed it; it is written anew with the next signatures."
            return fail(_QUORUM, f"{WITNESSED} is not this log's: {_says(error)}", mend)
        if not self._holds(opened.checkpoint):
            return fail(_QUORUM, f"{WITNESSED} is of entries that are not here", _CONTRADICTED)
        return self._counted(opened, keys, quorum, wanted)

    def _counted(
        self, opened: SignedCheckpoint, keys: Sequence[VerifierKey], quorum: int, wanted: str
    ) -> Finding:
        signed = [found for key in keys if (found := _cosignature(opened, key)) is not None]
        if len(signed) < quorum:
            says = f"UNWITNESSED: {WITNESSED} is signed by {len(signed)}, wanted are {wanted}"
            return fail(_QUORUM, says, _ASK)
        size = opened.checkpoint.size
        age_s = min(map(self._age, signed))
        says = f"{Status(size, age_s, '')}, by {', '.join(each.name for each in signed)}"
        if self._waits(size) > LATE_S:
            says = f"UNWITNESSED: newer entries wait for {wanted}; {says}"
            return fail(_QUORUM, says, _ASK)
        return ok(_QUORUM, says)

    def _opened(self, path: str, witnesses: Sequence[VerifierKey]) -> SignedCheckpoint:
        with (self._folder / path).open("rb") as file:
            return open_checkpoint(file.read(_MAX_NOTE_BYTES), self._key, witnesses)

    def _holds(self, checkpoint: Checkpoint) -> bool:
        return root_at(self._folder, checkpoint.size) == checkpoint.root

    def _age(self, signed: Cosignature) -> float:
        return max(0.0, self._now - signed.timestamp)

    def _waits(self, size: int) -> float:
        """Seconds since the first entry after the first `size` that the checkpoint covers; 0 where
        there is none, and no end where it cannot be read (it was moved to an archive).
        """
        try:
            for index, entry in stored(FolderSource(self._folder), size, self._size):
                found = summary_of(index, entry)
                if found.operation != _SIGNING:
                    return max(0.0, self._now - found.time_ms / 1000)
        except (BadEntry, Unreadable):
            return math.inf
        return 0.0


def _cosignature(opened: SignedCheckpoint, key: VerifierKey) -> Cosignature | None:
    try:
        return cosignature_of(opened.note, key)
    except (SignatureRefused, BadNote):
        return None


def _says(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
