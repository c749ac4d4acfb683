"""What is said between a log and a witness (c2sp.org/tlog-witness): bytes in, values out, no IO.

A witness signs a checkpoint once it has checked the log's signature and a proof that the tree only
grew since the one that it signed before.
"""

import base64
import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from ironwork_audit.tlog.note import (
    MAX_NOTE_BYTES,
    BadNote,
    Note,
    Signature,
    VerifierKey,
    format_note,
    parse_cosignature,
    parse_note,
)
from ironwork_audit.tlog.signed import Cosignature, cosignature_of
from ironwork_audit.tlog.tiles import MAX_SIZE

# Beside a log's `checkpoint`: the newest one that enough witnesses have signed.
WITNESSED: Final = "checkpoint.witnessed"
# Below the witness's URL.
ADD_CHECKPOINT: Final = "/add-checkpoint"
# Of the specification: "at most 63 lines".
MAX_PROOF_LINES: Final = 63
# Ours. One line is about 150 bytes, and a witness may send a few.
MAX_ANSWER_BYTES: Final = 16 * 1024

_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n")


class BadAnswer(ValueError):
    """What a witness's answer may not be. Its text names the rule."""


def add_checkpoint(old_size: int, proof: Sequence[bytes], note: bytes) -> bytes:
    """The body of POST <url>/add-checkpoint. proof: that the tree of old_size entries, which the
    witness signed last (0: none), is a prefix of the note's. ValueError for more than 63 hashes.
    """
    if len(proof) > MAX_PROOF_LINES:
        raise ValueError("witness: a proof has at most 63 hashes")
    lines = [f"old {old_size}", *(base64.b64encode(item).decode() for item in proof), ""]
    return "".join(f"{line}\n" for line in lines).encode() + note


def parse_size(body: bytes) -> int:
    """The size in a 409's body: of the tree that the witness signed last. Raises BadAnswer."""
    match = _SIZE.fullmatch(body)
    if match is None or int(match[1]) > MAX_SIZE:
        raise BadAnswer("witness: not a tree's size and a line feed")
    return int(match[1])


def parse_cosignature_lines(
    body: bytes, note: bytes, key: VerifierKey
) -> tuple[Signature, Cosignature]:
    """This witness's line in a 200's body, checked against the note that was sent; where there
    are several, the newest. Raises BadAnswer where there is none, or a wrong one.
    """
    text = parse_note(note).text
    if len(body) > MAX_ANSWER_BYTES:
        raise BadAnswer(f"witness: an answer of more than {MAX_ANSWER_BYTES} bytes")
    try:
        answered = parse_note(f"{text}\n".encode() + body)
        if answered.text != text:
            raise BadAnswer("witness: not signature lines alone")
        cosignature = cosignature_of(answered, key)
    except BadNote as bad:
        raise BadAnswer(str(bad)) from None
    except ValueError as refused:
        raise BadAnswer(str(refused)) from None
    return _newest(answered, key), cosignature


def cosigned(note: bytes, signatures: Sequence[Signature]) -> bytes:
    """The note with these signatures after its own, each key's once. Raises BadNote."""
    parsed = parse_note(note)
    new = {(signature.name, signature.key_id) for signature in signatures}
    kept = [item for item in parsed.signatures if (item.name, item.key_id) not in new]
    data = format_note(parsed.text, [*kept, *signatures])
    if len(data) > MAX_NOTE_BYTES:
        raise BadNote("note: too long with its cosignatures")
    return data


def checked_url(url: str) -> str:
    """The witness's URL without a last slash. ValueError for what is not to be used: checkpoints
    go by https, or by http to this machine.
    """
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a witness's URL has no user, query or fragment")
    if not parts.hostname or parts.scheme not in {"http", "https"}:
        raise ValueError("a witness's URL is https://HOST/…, or http:// to this machine")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError("a witness that is not on this machine is asked by https")
    _ = parts.port  # ValueError for what is none
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _newest(note: Note, key: VerifierKey) -> Signature:
    found = [signature for signature in note.signatures if signature.is_of(key)]
    return max(found, key=lambda signature: parse_cosignature(signature.value)[0])
