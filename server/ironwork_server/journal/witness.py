"""One witness: it is shown a checkpoint and a proof of growth, and answers with its signature."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from ironwork_audit.tlog import BadNote, Signature, VerifierKey
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_audit.witness import (
    BadAnswer,
    add_checkpoint,
    cosigned,
    parse_cosignature_lines,
    parse_size,
)
from ironwork_server.journal.witness_errors import WitnessConflict, WitnessFailed
from ironwork_server.journal.witness_http import Answer

# Of the tree of the second size, that it begins with the tree of the first.
Prove = Callable[[int, int], Awaitable[Sequence[bytes]]]

_REASONS: Final = {
    400: "WITNESS_REFUSED",
    403: "WITNESS_KEY_UNKNOWN",
    404: "WITNESS_LOG_UNKNOWN",
    429: "WITNESS_BUSY",
}


class Endpoint(Protocol):
    """Where a witness is asked. Raises WitnessFailed."""

    async def add_checkpoint(self, body: bytes) -> Answer: ...


class Witness:
    """Remembers the tree that the witness signed last: size is its number of entries, 0 for none,
    note the checkpoint with its signature, timestamp (POSIX, s) the witness's own. One `submit` at
    a time.
    """

    def __init__(self, endpoint: Endpoint, key: VerifierKey, log_key: VerifierKey) -> None:
        self.key = key
        self.size = 0
        self.timestamp = 0
        self.note: bytes | None = None
        # Whether the witness has answered from a smaller tree than it had signed.
        self.forgot = False
        self._endpoint = endpoint
        self._log_key = log_key

    def resume(self, note: bytes) -> None:
        """Go on from a cosigned checkpoint that was kept. Raises ValueError for what is none."""
        opened = open_checkpoint(note, self._log_key, [self.key])
        self._remember(opened.checkpoint.size, opened.cosignatures[0].timestamp, note)

    async def submit(self, note: bytes, prove: Prove) -> Signature:
        """The witness's signature under the log's newest checkpoint, checked.

        Raises WitnessConflict where it knows another history, WitnessFailed for everything else.
        """
        size = open_checkpoint(note, self._log_key).checkpoint.size
        old = min(self.size, size)
        answer = await self._ask(old, size, note, prove)
        if answer.status == 409:
            old = self._told(answer, old, size)
            answer = await self._ask(old, size, note, prove)
        if answer.status != 200:
            raise _refused(answer.status)
        try:
            signature, cosignature = parse_cosignature_lines(answer.body, note, self.key)
            kept = cosigned(note, [signature])
        except (BadAnswer, BadNote):
            raise WitnessFailed("WITNESS_COSIGNATURE_WRONG") from None
        self._remember(size, cosignature.timestamp, kept)
        return signature

    async def _ask(self, old: int, size: int, note: bytes, prove: Prove) -> Answer:
        proof = await prove(old, size)
        return await self._endpoint.add_checkpoint(add_checkpoint(old, proof, note))

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
