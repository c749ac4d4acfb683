"""What the entries imply: which keys were deleted, which intents have no outcome yet, and which
writes ended in a way that nobody knows.
"""

import hashlib
import json
import re
from typing import Final

from ironwork_audit import INTENT, OUTCOME, summarize
from ironwork_audit.log import Dump

UNFINISHED: Final = "journal.unfinished"
DELETE_KEY: Final = "DeleteKey"
# The reason of a write that may have been done or not (store.errors).
UNDECIDED: Final = "STORE_UNDECIDED"
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
_IS_UNDECIDED: Final = _says("status_detail", UNDECIDED)
_ITS_INTENT: Final = re.compile(rb'"intent_index":([0-9]{1,19})')


class LogState:
    """An ironwork_audit.log.Fold. unfinished: indexes of intents without an outcome, growing.
    undecided: writes to the store whose end is not known, by their intent's index: the index of the
    entry that says so (a deletion's intent, or an outcome with UNDECIDED).

    A deleted key is 16 bytes of SHA-256 here: about 100 bytes of memory for each, 16 in a snapshot.
    Read from any thread.
    """

    def __init__(self) -> None:
        self.unfinished: dict[int, None] = {}
        self.undecided: dict[int, int] = {}
        self._deleted: set[bytes] = set()

    def was_deleted(self, workspace: str, key_id: str) -> bool:
        """Whether the entries say that this key is gone for good."""
        return _digest(workspace, key_id) in self._deleted

    def take(self, index: int, entry: bytes) -> None:
        """Add what this entry says. Parses only deletions and what is undecided: a start may read
        many entries.
        """
        if _IS_INTENT in entry:
            self.unfinished[index] = None
        elif _IS_OUTCOME in entry:
            if its := _ITS_INTENT.search(entry):
                self._end(int(its[1]), index, entry)
        elif _IS_MARK in entry:
            # Written at a start, when no call is under way: it accounts for all before it.
            self.unfinished.clear()
        if any(name in entry for name in _OF_DELETION):
            found = summarize(entry)
            if found.operation == DELETE_KEY and found.phase == INTENT:
                self.undecided[index] = index
            ended = found.operation == DELETE_KEY and found.phase == OUTCOME
            if found.success and (ended or found.operation == KEY_DELETED):
                self._deleted.add(_digest(found.workspace, found.key_id))

    def _end(self, intent: int, index: int, outcome: bytes) -> None:
        self.unfinished.pop(intent, None)
        self.undecided.pop(intent, None)
        # Without a key's id there is nothing to be looked up.
        if _IS_UNDECIDED in outcome and summarize(outcome).key_id:
            self.undecided[intent] = index

    def dump(self) -> Dump:
        """A line with the unfinished indexes and the undecided pairs, then the digests of the
        deleted keys, sorted, which takes a second for a million of them.
        """
        line = json.dumps([list(self.unfinished), list(self.undecided.items())])
        deleted = self._deleted.copy()
        return lambda: line.encode() + b"\n" + b"".join(sorted(deleted))

    def load(self, data: bytes) -> None:
        """See Fold. Raises ValueError."""
        line, end, digests = data.partition(b"\n")
        if not end or len(digests) % _DIGEST_BYTES:
            raise ValueError("not a state of this log")
        match json.loads(line):
            case [list(unfinished), list(undecided)] if (
                _are_indexes(unfinished)
                and all(isinstance(pair, list) and len(pair) == 2 for pair in undecided)
                and all(_are_indexes(pair) for pair in undecided)
            ):
                self.unfinished = dict.fromkeys(unfinished)
                self.undecided = dict(undecided)
            case _:
                raise ValueError("not a state of this log")
        self._deleted = {
            digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES)
        }

    def reset(self) -> None:
        """See Fold."""
        self.unfinished.clear()
        self.undecided.clear()
        self._deleted.clear()


def _are_indexes(values: list[object]) -> bool:
    return all(type(value) is int for value in values)


def _digest(workspace: str, key_id: str) -> bytes:
    return hashlib.sha256(f"{workspace}\0{key_id}".encode()).digest()[:_DIGEST_BYTES]
