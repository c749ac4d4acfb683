"""Reads AWS CloudTrail's events of KMS: files of `{"Records": […]}`, plain or gzip.

Of a record only what is named here is kept. What our encryption context says (hsm/ironwork_hsm/aws:
format, master key, version, mechanism, and for which row) tells which key an event was about.
"""

import base64
import binascii
import gzip
import json
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from ironwork_audit.reconcile.calls import Call, NotARecord, Recorded
from ironwork_audit.reconcile.expected import CANARY, PEPPER

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
_KMS: Final = "kms.amazonaws.com"
# Read nothing of a key and use none.
_HARMLESS: Final = ("Describe", "List", "Get")
_MASTER_KEY: Final = "ironwork:master-key"
_CONTEXT: Final = "ironwork:context"
_CANARY_CONTEXT: Final = b"ironwork-canary-v1"
_PEPPER_TAG: Final = b"ironwork/pepper"
_WRAP_TAG: Final = b"ironwork/envelope/wrap"


class _Event(NamedTuple):
    call: Call
    master_key: str
    keys: frozenset[str]


def read_cloudtrail(paths: Sequence[Path], backends: frozenset[str]) -> Recorded:
    """The events about our master keys: those whose context names one of `backends`, and whatever
    else was done with the same KMS keys. Raises NotARecord, OSError.
    """
    events: list[_Event] = []
    ignored = 0
    for path in paths:
        for number, record in enumerate(_records(path), 1):
            event = _event(record, f"{path.name} record {number}")
            if event is None:
                ignored += 1
            else:
                events.append(event)
    ours = {key for event in events if event.master_key in backends for key in event.keys}
    calls = [event.call for event in events if event.keys & ours or event.master_key in backends]
    return Recorded(calls, ignored + len(events) - len(calls), [])


def _records(path: Path) -> list[Any]:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(path, "rb") as packed:
                data = packed.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise NotARecord(f"{path.name}: longer than {MAX_FILE_BYTES} bytes")
        document = json.loads(data)
    except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile):
        raise NotARecord(f"{path.name}: not JSON") from None
    records = document.get("Records") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise NotARecord(f'{path.name}: not CloudTrail\'s {{"Records": […]}}')
    return records


def _event(record: Any, place: str) -> _Event | None:
    try:
        name = str(record["eventName"])
        if record["eventSource"] != _KMS or name.startswith(_HARMLESS):
            return None
        time_ms = _time_ms(record["eventTime"])
        parameters = record.get("requestParameters") or {}
        context = parameters.get("encryptionContext") or {}
        keys = {str(item["ARN"]) for item in record.get("resources") or ()}
        if "keyId" in parameters:
            keys.add(str(parameters["keyId"]))
        request = str(record.get("requestID", ""))[:64]
        master_key = str(context.get(_MASTER_KEY, ""))
        subject = _subject(context.get(_CONTEXT)) if master_key else FOREIGN
        ok = not record.get("errorCode")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise NotARecord(f"{place}: not a CloudTrail event") from None
    shown = f"{place} (request {request})" if request.isascii() and request.isprintable() else place
    # CloudTrail cuts times to whole seconds.
    call = Call(name, subject, time_ms, time_ms + 999, ok, shown)
    return _Event(call, master_key, frozenset(keys))


def _time_ms(text: str) -> int:
    time = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return int(time.timestamp()) * 1000


# Never equal to what an entry of ours is about.
FOREIGN: Final = "a context that is not ours"


def _subject(text: object) -> str:
    """Which stored key, or PEPPER or CANARY, by the context that the data key is wrapped under
    (core/envelope.py: fields, each after its length in 4 bytes).
    """
    try:
        context = base64.b64decode(str(text), validate=True)
    except binascii.Error:
        return FOREIGN
    if context == _CANARY_CONTEXT:
        return CANARY
    fields = _fields(context)
    if fields and fields[0] == _PEPPER_TAG:
        return PEPPER
    if len(fields) == 6 and fields[0] == _WRAP_TAG:
        return fields[3].decode("utf-8", "replace")
    return FOREIGN


def _fields(data: bytes) -> list[bytes]:
    fields: list[bytes] = []
    position = 0
    while position + 4 <= len(data) and len(fields) < 16:
        length = int.from_bytes(data[position : position + 4], "big")
        fields.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    return fields if position == len(data) else []
