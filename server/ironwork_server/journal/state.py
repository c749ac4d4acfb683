"""What the entries imply: which keys were deleted, and which intents have no outcome yet."""

import hashlib
import json
import re
from typing import Final

from ironwork_audit import INTENT, OUTCOME, summarize

UNFINISHED: Final = "journal.unfinished"
DELETE_KEY: Final = "DeleteKey"
# The row is gone although DeleteKey failed: its bytes are still in the store's files.
KEY_DELETED: Final = "key.deleted"

_DIGEST_BYTES: Final = 16


def _says(name: str, value: str) -> bytes:
    # A quotation mark within a value is escaped, so these bytes are a member and nothing else.
    return json.dumps({name: value}, separators=(",", ":"))[1:-1].encode()


_IS_INTENT: Final = _says("phase", INTENT)
_IS_OUTCOME: Final = _says("phase", OUTCOME)
_IS_MARK: Final = _says("event_code", UNFINISHED)
_OF_DELETION: Final = (_says("event_code", DELETE_KEY), _says("event_code", KEY_DELETED))
_ITS_INTENT: Final = re.compile(rb'"intent_index":([0-9]{1,19})')


class LogState:
    """An ironwork_audit.log.Fold. unfinished: indexes of intents without an outcome, growing.

    A deleted key is 16 bytes of SHA-256 here: about 100 bytes of memory for each, 16 in a snapshot.
    Read from any thread.
    """

    def __init__(self) -> None:
        self.unfinished: dict[int, None] = {}
        self._deleted: set[bytes] = set()

    def was_deleted(self, workspace: str, key_id: str) -> bool:
        """Whether the entries say that this key is gone for good."""
        return _digest(workspace, key_id) in self._deleted

    def take(self, index: int, entry: bytes) -> None:
        """Add what this entry says. Parses only deletions: a start may read many."""
        if _IS_INTENT in entry:
            self.unfinished[index] = None
        elif _IS_OUTCOME in entry:
            if its := _ITS_INTENT.search(entry):
                self.unfinished.pop(int(its[1]), None)
        elif _IS_MARK in entry:
            # Written at a start, when no call is under way: it accounts for all before it.
            self.unfinished.clear()
        if any(name in entry for name in _OF_DELETION):
            found = summarize(entry)
            ended = found.operation == DELETE_KEY and found.phase == OUTCOME
            if found.success and (ended or found.operation == KEY_DELETED):
                self._deleted.add(_digest(found.workspace, found.key_id))

    def dump(self) -> bytes:
        """A line with the unfinished indexes, then the digests of the deleted keys."""
        return json.dumps(list(self.unfinished)).encode() + b"\n" + b"".join(sorted(self._deleted))

    def load(self, data: bytes) -> None:
        """See Fold. Raises ValueError."""
        line, end, digests = data.partition(b"\n")
        if not end or len(digests) % _DIGEST_BYTES:
            raise ValueError("not a state of this log")
        indexes = json.loads(line)
        if not isinstance(indexes, list) or any(type(index) is not int for index in indexes):
            raise ValueError("not a state of this log")
        self.unfinished = dict.fromkeys(indexes)
        self._deleted = {
            digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES)
        }

    def reset(self) -> None:
        """See Fold."""
        self.unfinished.clear()
        self._deleted.clear()


def _digest(workspace: str, key_id: str) -> bytes:
    return hashlib.sha256(f"{workspace}\0{key_id}".encode()).digest()[:_DIGEST_BYTES]
