"""One witness: it is shown a checkpoint and a proof of growth, and answers with its signature."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ironwork_audit.tlog import Signature, VerifierKey
from ironwork_audit.witness import add_checkpoint
from ironwork_audit.witness_submission import Answer, Ask, Standing

# Of the tree of the second size, that it begins with the tree of the first.
Prove = Callable[[int, int], Awaitable[Sequence[bytes]]]


class Endpoint(Protocol):
    """Where a witness is asked. Raises WitnessFailed."""

    async def add_checkpoint(self, body: bytes) -> Answer: ...


class Witness(Standing):
    """Where one witness stands, and how it is asked. One `submit` at a time."""

    def __init__(self, endpoint: Endpoint, key: VerifierKey, log_key: VerifierKey) -> None:
        super().__init__(key, log_key)
        self._endpoint = endpoint

    async def submit(self, note: bytes, prove: Prove) -> Signature:
        """The witness's signature under the log's newest checkpoint, checked.

        Raises WitnessConflict where it knows another history, WitnessFailed for everything else.
        """
        steps = self.submission(note)
        ask = next(steps)
        while True:
            answer = await self._ask(ask, note, prove)
            try:
                ask = steps.send(answer)
            except StopIteration as done:
                signature: Signature = done.value
                return signature

    async def _ask(self, ask: Ask, note: bytes, prove: Prove) -> Answer:
        proof = await prove(ask.old_size, ask.size)
        return await self._endpoint.add_checkpoint(add_checkpoint(ask.old_size, proof, note))
