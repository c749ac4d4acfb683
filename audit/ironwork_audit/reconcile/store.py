"""The store's keys against the log: every row was added on record, none was deleted, none is gone.

What the store holds is read from `ironwork-server db export-ids`: JSON lines, first
`{"exported_time":…,"format":"ironwork-key-ids/1","keys":N}`, then N times
`{"created_time":…,"key_id":…,"sequence":…,"state":…,"workspace":…}`. No ciphertext, no mask.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from ironwork_audit import fields
from ironwork_audit.event import EVENT, INTENT, OUTCOME
from ironwork_audit.fields import FieldRefused
from ironwork_audit.reconcile.calls import NotARecord
from ironwork_audit.reconcile.device import Result, shown
from ironwork_audit.select import summary_of

FORMAT: Final = "ironwork-key-ids/1"
MAX_KEYS: Final = 1_000_000
_LONGEST_LINE: Final = 4096
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# What the entries that count have in them; the others are not parsed.
_NAMED: Final = (b'"AddKey"', b'"DeleteKey"', b'"hsm.wrap"', b'"key.deleted"')

Id = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Export:
    """time_ms: when it was made. ids: (workspace, key id) of every row."""

    time_ms: int
    ids: frozenset[Id]


@dataclass(slots=True)
class Lives:
    """What the logs say of every key: (workspace, key id) → where and when (ms since 1970)."""

    added: dict[Id, tuple[str, int]] = field(default_factory=dict)
    deleted: dict[Id, tuple[str, int]] = field(default_factory=dict)
    # Deletions that were asked for, whatever came of them.
    tried: dict[Id, int] = field(default_factory=dict)
    wrapped: dict[Id, str] = field(default_factory=dict)

    def take(self, index: int, entry: bytes) -> None:
        """The next entry of a log. Raises BadEntry."""
        if not any(name in entry for name in _NAMED):
            return
        entry_is = summary_of(index, entry)
        place = f"{entry_is.origin} entry {index}"
        key = entry_is.workspace, entry_is.key_id
        at = place, entry_is.time_ms
        match entry_is.operation, entry_is.phase, entry_is.success:
            case "AddKey", str(phase), True if phase == OUTCOME and key[1]:
                self.added.setdefault(key, at)
            case "DeleteKey", str(phase), _ if phase == INTENT and key[1]:
                self.tried.setdefault(key, entry_is.time_ms)
            case "DeleteKey", str(phase), True if phase == OUTCOME and key[1]:
                self.deleted.setdefault(key, at)
            case "key.deleted", str(phase), True if phase == EVENT:
                self.deleted.setdefault(key, at)
            case "hsm.wrap", str(phase), True if phase == OUTCOME and key[1]:
                self.wrapped.setdefault(key, place)


def reconcile_store(lives: Lives, export: Export, *, skew_ms: int) -> Result:
    """Hold the store against the logs of every process that writes to it."""
    problems: list[str] = []
    explained = 0
    for key in sorted(export.ids):
        name = _name(key)
        gone = lives.deleted.get(key)
        if gone is not None and gone[1] + skew_ms < export.time_ms:
            problems.append(
                f"{name}: deleted by {gone[0]} at {shown(gone[1])}, and back in the store"
            )
        elif key not in lives.added:
            wrapped = lives.wrapped.get(key)
            if wrapped is None:
                problems.append(f"{name}: in the store, and no AddKey is on record")
            else:
                # Its AddKey was cut off after the row was written.
                explained += 1
    for key, (place, time_ms) in sorted(lives.added.items()):
        if key in export.ids or key in lives.deleted:
            continue
        if key in lives.tried and lives.tried[key] < export.time_ms + skew_ms:
            explained += 1
        elif time_ms + skew_ms < export.time_ms:
            problems.append(
                f"{_name(key)}: added by {place} at {shown(time_ms)}, not in the store, and no "
                "DeleteKey is on record"
            )
    return Result(
        problems,
        entries=len(lives.added) + len(lives.deleted),
        calls=len(export.ids),
        explained=explained,
        ignored=0,
    )


def read_export(path: Path) -> Export:
    """What `ironwork-server db export-ids` wrote. Raises NotARecord, OSError."""
    with path.open("rb") as file:
        return parse_export(iter(lambda: file.readline(_LONGEST_LINE), b""), path.name)


def parse_export(lines: Iterable[bytes], name: str) -> Export:
    """The same, of lines with their ends. Raises NotARecord."""
    documents = (_document(line, f"{name} line {number}") for number, line in enumerate(lines, 1))
    head = next(documents, None)
    if head is None or head.get("format") != FORMAT:
        raise NotARecord(f"{name}: not an export of `ironwork-server db export-ids`")
    try:
        time_ms = _milliseconds(head["exported_time"])
        announced = fields.SEQUENCE.check("keys", head["keys"])
    except (KeyError, TypeError, ValueError):
        raise NotARecord(f"{name} line 1: not an export's first line") from None
    ids: set[Id] = set()
    for number, document in enumerate(documents, 2):
        key = _id(document, f"{name} line {number}")
        if key in ids:
            raise NotARecord(f"{name} line {number}: a key that stood there before")
        if len(ids) >= MAX_KEYS:
            raise NotARecord(f"{name}: more than {MAX_KEYS} keys")
        ids.add(key)
    if len(ids) != announced:
        raise NotARecord(f"{name}: has {len(ids)} keys, and announces {announced}: cut off?")
    return Export(time_ms, frozenset(ids))


def _document(line: bytes, place: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise NotARecord(f"{place}: not a JSON object")
    return document


def _id(document: dict[str, Any], place: str) -> Id:
    try:
        workspace = fields.WORKSPACE.check("workspace", document["workspace"])
        key_id = fields.KEY_ID.check("key_id", document["key_id"])
    except (KeyError, FieldRefused):
        raise NotARecord(f"{place}: not a key of an export") from None
    return str(workspace), str(key_id)


def _milliseconds(text: str) -> int:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return (time - _EPOCH) // timedelta(milliseconds=1)


def _name(key: Id) -> str:
    return f"workspaces/{key[0]}/keys/{key[1]}"
