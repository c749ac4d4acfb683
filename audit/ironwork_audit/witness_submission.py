"""What a log does with one witness: pure, asked step by step for what to send next.

Whoever owns a connection and the log's tiles does the IO: the server, beside its calls, and
`ironwork-audit witness`, from the log's files alone.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ironwork_audit.tlog.note import BadNote, Signature, VerifierKey
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_audit.witness import BadAnswer, cosigned, parse_cosignature_lines, parse_size

_REASONS: Final[Mapping[int, str]] = MappingProxyType(
    {
        400: "WITNESS_REFUSED",
        403: "WITNESS_KEY_UNKNOWN",
        404: "WITNESS_LOG_UNKNOWN",
        429: "WITNESS_BUSY",
    }
)


class WitnessFailed(Exception):
    """No cosignature. reason: of docs/operations.md. What the witness wrote is not repeated."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WitnessConflict(WitnessFailed):
    """The witness knows another history of this log than the one that it was shown."""


@dataclass(frozen=True, slots=True)
class Ask:
    """To be sent: the note, with a proof that its tree begins with the tree of old_size."""

    old_size: int
    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """status: HTTP's. body: at most witness.MAX_ANSWER_BYTES."""

    status: int
    body: bytes


Steps = Generator[Ask, Answer, Signature]


class Standing:
    """Remembers the tree that the witness signed last: size is its number of entries, 0 for none,
    note the checkpoint with its signature, timestamp (POSIX, s) the witness's own. One submission
    at a time.
    """

    def __init__(self, key: VerifierKey, log_key: VerifierKey) -> None:
        self.key = key
        self.size = 0
        self.timestamp = 0
        self.note: bytes | None = None
        # Whether the witness has answered from a smaller tree than it had signed.
        self.forgot = False
        self._log_key = log_key

    def resume(self, note: bytes) -> None:
        """Go on from a cosigned checkpoint that was kept. Raises ValueError for what is none."""
        opened = open_checkpoint(note, self._log_key, [self.key])
        self._remember(opened.checkpoint.size, opened.cosignatures[0].timestamp, note)

    def submission(self, note: bytes) -> Steps:
        """Show the log's newest checkpoint: what to ask, answer by answer; returns the witness's
        signature, checked.

        Raises WitnessConflict where it knows another history, WitnessFailed for everything else.
        """
        size = open_checkpoint(note, self._log_key).checkpoint.size
        old = min(self.size, size)
        answer = yield Ask(old, size)
        if answer.status == 409:
            old = self._told(answer, old, size)
            answer = yield Ask(old, size)
        if answer.status != 200:
            raise _refused(answer.status)
        try:
            signature, cosignature = parse_cosignature_lines(answer.body, note, self.key)
            kept = cosigned(note, [signature])
        except (BadAnswer, BadNote):
            raise WitnessFailed("WITNESS_COSIGNATURE_WRONG") from None
        self._remember(size, cosignature.timestamp, kept)
        return signature

    def _told(self, answer: Answer, old: int, size: int) -> int:
        """The size to prove growth from."""
        try:
            told = parse_size(answer.body)
        except BadAnswer:
            raise WitnessFailed("WITNESS_ANSWER_WRONG") from None
        if told > size:
            raise WitnessConflict("WITNESS_AHEAD")
        if told == old:
            # tlog-witness before 1.1 said so of another root at the same size.
            raise WitnessConflict("WITNESS_CONFLICT")
        self.forgot = told < self.size
        return told

    def _remember(self, size: int, timestamp: int, note: bytes) -> None:
        self.size, self.timestamp, self.note = size, timestamp, note


def _refused(status: int) -> WitnessFailed:
    if status == 422:
        return WitnessConflict("WITNESS_CONFLICT")
    if status == 409:
        # Somebody else shows it checkpoints of this log meanwhile.
        return WitnessFailed("WITNESS_BUSY")
    if 300 <= status < 400:
        return WitnessFailed("WITNESS_REDIRECTED")
    return WitnessFailed(
        _REASONS.get(status, "WITNESS_BUSY" if status >= 500 else "WITNESS_REFUSED")
    )
