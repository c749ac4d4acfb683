"""When a log's head is signed, and what a signature must be: pure, over a clock's readings.

One rule for every log (ADRs 0021, 0028): a checkpoint at most a second after an entry, whatever
number of entries it covers, and never one for its own signing, so that an idle log does not grow.
Whoever owns the log and its key does the IO: the server's checkpointer, the HSM process' record.
Needs `cryptography`, as `ironwork_audit.tlog.signed` does.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ironwork_audit.tlog import BadNote, KeyType, Signature, VerifierKey, format_note
from ironwork_audit.tlog.signed import SignatureRefused, open_checkpoint

# Of the operation by which a log's own checkpoint is signed.
SIGN: Final = "hsm.sign"
# How often entries are looked for. With the tiles' syncs and a signature, within a second.
INTERVAL_S: Final = 0.5
# The whole of one attempt: tiles, two records, a signature, the checkpoint's file.
ATTEMPT_DEADLINE_S: Final = 15.0
# After a failure: tried again by itself, each attempt at the cost of two entries. The last of these
# is what a device that is back waits for at most.
RETRY_S: Final = (1.0, 2.0, 5.0)
# An entry that waits for a checkpoint for so long is late.
LATE_S: Final = 10.0

# By the names that signers have for them.
_TYPES: Final[Mapping[str, KeyType]] = MappingProxyType(
    {"ed25519": KeyType.ED25519, "ecdsa-p256": KeyType.ECDSA}
)


class KeyDiffers(ValueError):
    """The published checkpoint was not signed by this key."""


def log_key(origin: str, algorithm: str, public_key: bytes) -> VerifierKey:
    """A signer's public half as C2SP writes it: its name is the log's origin. algorithm: `ed25519`
    (public_key: RFC 8032's 32 bytes) or `ecdsa-p256` (DER SubjectPublicKeyInfo).
    """
    return VerifierKey(origin, _TYPES[algorithm], public_key)


def signed_size(note: bytes | None, key: VerifierKey) -> int:
    """How many entries the published checkpoint covers; 0 without one. Raises KeyDiffers."""
    if note is None:
        return 0
    try:
        return open_checkpoint(note, key).checkpoint.size
    except (SignatureRefused, BadNote):
        raise KeyDiffers(f"not signed by {key.name}") from None


def signed_note(text: str, key: VerifierKey, signature: bytes) -> bytes:
    """The checkpoint's note, once the public half has verified it. Raises SignatureRefused."""
    note = format_note(text, [Signature.of(key, signature)])
    try:
        open_checkpoint(note, key)
    except BadNote:
        raise SignatureRefused(f"the signature of {key.name} is none") from None
    return note


class Schedule:
    """Whether to sign now. size: entries that are under a published checkpoint. All times are
    readings, in seconds, of one clock that only goes forward.
    """

    def __init__(self) -> None:
        self.size = 0
        self._failures = 0
        self._retry_at = 0.0
        self._behind_since: float | None = None

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def is_due(self, due: int, now: float) -> bool:
        """Whether a checkpoint is. due: the index after the last entry that one is due for."""
        if due <= self.size:
            return False
        if self._behind_since is None:
            self._behind_since = now
        return True

    def may_try(self, now: float) -> bool:
        """Whether the pause after a failure is over."""
        return now >= self._retry_at

    def hurry(self) -> None:
        """Try next time, whatever failed before."""
        self._retry_at = 0.0

    def failed(self, now: float) -> None:
        """An attempt failed."""
        self._retry_at = now + RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1

    def succeeded(self, due: int, now: float) -> None:
        """A checkpoint of `size` is published, by an attempt that began at now."""
        self._failures = 0
        self._behind_since = None if due <= self.size else now

    def is_late(self, now: float) -> bool:
        """Whether an entry has waited for longer than LATE_S."""
        since = self._behind_since
        return since is not None and now - since > LATE_S
