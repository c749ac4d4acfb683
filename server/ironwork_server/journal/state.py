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


# `unmapped` is an entry's last member, so that its own are looked for from the end.
_PHASE: Final = b'"phase":'
_INTENT: Final = json.dumps(INTENT).encode()
_OUTCOME: Final = json.dumps(OUTCOME).encode()
_ITS_INTENT: Final = b'"intent_index":'
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")
_OPERATION: Final = b'"event_code":"'
_OF_DELETION: Final = frozenset({DELETE_KEY.encode(), KEY_DELETED.encode()})
_MARK: Final = UNFINISHED.encode()
_IS_UNDECIDED: Final = _says("status_detail", UNDECIDED)


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
        all entries of a log.
        """
        start = entry.find(_OPERATION) + len(_OPERATION)
        operation = entry[start : entry.find(b'"', start)]
        at = entry.rfind(_PHASE)
        phase = at + len(_PHASE)
        if entry.startswith(_INTENT, phase):
            self.unfinished[index] = None
        elif entry.startswith(_OUTCOME, phase):
            its = entry.rfind(_ITS_INTENT, 0, at)
            if number := _DIGITS.match(entry, its + len(_ITS_INTENT)):
                self._end(int(number[0]), index, entry)
        elif operation == _MARK:
            # Written at a start, when no call is under way: it accounts for all before it.
            self.unfinished.clear()
        if operation in _OF_DELETION:
            found = summarize(entry)
            if found.operation == DELETE_KEY and found.phase == INTENT:
                self.undecided[index] = index
            ended = found.operation == DELETE_KEY and found.phase == OUTCOME
            if found.success and (ended or found.operation == KEY_DELETED):
                self._deleted.add(_digest(found.workspace, found.key_id))

    def _end(self, intent: int, index: int, outcome: bytes) -> None:
        self.unfinished.pop(intent, None)
        if self.undecided:
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
