"""`ironwork-server leakcheck`: looks for a key, in the forms that leaks take, in files.

The key is read from standard input or a prompt, never from an argument. What is found is named
by file and form, never shown.
"""

import getpass
import json
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

from ironwork_server.app.startup import StartupError

# Twelve bytes of a key in one place are counted as a leak of it.
PART_BYTES = 12
# The constant beginning that every mask shows, and the four characters that it shows at the end.
SHOWN_PREFIX = len(b"sk-ant-api03-")
SHOWN_SUFFIX = 4
CHUNK = 1 << 20
# How often a folder is listed anew because a file went away before it could be read.
MAX_LISTINGS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that holds the key, or 12 bytes of its secret part, in one form."""

    path: Path
    form: str


def leakcheck(paths: Sequence[Path], *, as_json: bool) -> int:
    """0 where nothing was found, 1 where something was. Raises StartupError."""
    searched, findings = _search_all(_read_key(), paths)
    if as_json:
        found = [{"path": str(item.path), "form": item.form} for item in findings]
        print(json.dumps({"files": searched, "findings": found}))  # noqa: T201
    else:
        for item in findings:
            print(f"FOUND ({item.form}): {item.path}")  # noqa: T201
        print(f"{searched} files searched, {len(findings)} findings")  # noqa: T201
    return 1 if findings else 0


def _search_all(key: bytes, paths: Sequence[Path]) -> tuple[int, list[Finding]]:
    """How many files there were, and what was found in them. A running server renames files: what
    went away before it was read may stand elsewhere by then, so the folders are listed again.
    """
    needles = dict(_forms(key))
    found: dict[Path, list[Finding]] = {}
    for _ in range(MAX_LISTINGS):
        gone = False
        for path in _files(paths):
            if path in found:
                continue
            try:
                found[path] = _findings(path, needles)
            except FileNotFoundError:
                gone = True
        if not gone:
            return len(found), [finding for each in found.values() for finding in each]
    raise StartupError(
        "leakcheck: files came and went while they were searched; stop what writes there, then "
        "search again."
    )


def search(key: bytes, files: Sequence[Path]) -> list[Finding]:
    """Every file and form in which 12 consecutive secret bytes of the key stand."""
    needles = dict(_forms(key))
    return [finding for path in files for finding in _findings(path, needles)]


def _read_key() -> bytes:
    raw = (
        getpass.getpass("Key: ").encode()
        if sys.stdin.isatty()
        else sys.stdin.buffer.readline(4096).strip()
    )
    if len(raw) < SHOWN_PREFIX + SHOWN_SUFFIX + PART_BYTES:
        raise StartupError("leakcheck: give a whole key on standard input, one line.")
    return raw


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (item for item in sorted(path.rglob("*")) if item.is_file())
        elif path.exists():
            yield path
        else:
            raise StartupError(f"leakcheck: {path} does not exist.")


def _forms(key: bytes) -> Iterator[tuple[str, set[bytes]]]:
    """Needles by form. The key's secret part is what no mask shows."""
    secret = key[SHOWN_PREFIX:-SHOWN_SUFFIX]
    parts = {secret[i : i + PART_BYTES] for i in range(len(secret) - PART_BYTES + 1)}
    yield "plain", parts
    yield (
        "hexadecimal",
        {text.encode() for part in parts for text in (part.hex(), part.hex().upper())},
    )
    yield "UTF-16", {part.decode("latin-1").encode("utf-16-le") for part in parts}
    yield "percent-encoded", {text for part in parts for text in _percent(part)} - parts
    # Three bytes are four characters: a part in the middle of a text stands in one of three ways.
    yield "base64", {text for part in parts for text in (b64encode(part), urlsafe_b64encode(part))}


def _percent(part: bytes) -> Iterator[bytes]:
    """Only what must be encoded (RFC 3986, section 2.3), and everything."""
    yield quote_from_bytes(part, safe="").encode()
    yield b"".join(b"%%%02X" % byte for byte in part)
    yield b"".join(b"%%%02x" % byte for byte in part)


def _findings(path: Path, needles: dict[str, set[bytes]]) -> list[Finding]:
    found = set()
    overlap = max(len(needle) for wanted in needles.values() for needle in wanted)
    tail = b""
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            window = tail + data
            tail = window[-overlap:]
            for form, wanted in needles.items():
                if form not in found and any(needle in window for needle in wanted):
                    found.add(form)
    return [Finding(path, form) for form in sorted(found)]
