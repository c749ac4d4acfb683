"""Arguments that several commands share, and what they stand for."""

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from ironwork_audit.ocsf import MAX_ENTRY_BYTES
from ironwork_audit.source import Source, Unreadable, open_source
from ironwork_audit.tlog.note import MAX_NOTE_BYTES, BadNote, KeyType, VerifierKey

_MAX_KEY_BYTES: Final = 4096


class WrongUsage(Exception):
    """Arguments that do not go together. The text says what does."""


def add_log(parser: argparse.ArgumentParser) -> None:
    """LOG: where the log is."""
    parser.add_argument("log", metavar="LOG", help="the log's folder, or the URL of its files")


def add_key(parser: argparse.ArgumentParser) -> None:
    """--key: the log's verifier key."""
    parser.add_argument(
        "--key",
        required=True,
        help="the log's verifier key (name+hash+base64), or a file that holds it",
    )


def add_witness_keys(parser: argparse.ArgumentParser) -> None:
    """--witness-key, as often as there are witnesses."""
    parser.add_argument(
        "--witness-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a witness's verifier key, or a file that holds it: its cosignature is required "
        "(may be given again)",
    )


@contextmanager
def log_of(options: argparse.Namespace) -> Iterator[Source]:
    """The log. Raises Unreadable."""
    with closing(open_source(options.log)) as source:
        yield source


def key_of(options: argparse.Namespace) -> VerifierKey:
    """The key of --key. Raises BadNote, Unreadable."""
    return key_from(options.key)


def key_from(text: str) -> VerifierKey:
    """A log's key, or the file that holds it. Raises BadNote, Unreadable."""
    key = _key(text)
    if key.type is KeyType.COSIGNATURE_V1:
        raise BadNote("--key: this is a witness's key (type 0x04): give the log's")
    return key


def _key(text: str) -> VerifierKey:
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:  # the key itself is too long for a path
        is_file = False
    if is_file:
        text = read_file(path, _MAX_KEY_BYTES).decode("utf-8", "replace").strip()
    elif "+" not in text:
        raise BadNote(f"{text}: neither a verifier key (name+hash+base64) nor a file")
    return VerifierKey.parse(text)


def witness_keys_of(options: argparse.Namespace) -> list[VerifierKey]:
    """The keys of --witness-key. Raises BadNote, Unreadable."""
    keys = [_key(text) for text in options.witness_key]
    if any(key.type is not KeyType.COSIGNATURE_V1 for key in keys):
        raise BadNote("--witness-key: not a witness's key (type 0x04)")
    return keys


def read_file(path: Path, limit: int = MAX_NOTE_BYTES) -> bytes:
    """A small file, such as an older checkpoint. Raises Unreadable."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or 'cannot be read'}") from None
    if len(data) > limit:
        raise Unreadable(f"{path}: longer than {limit} bytes")
    return data


def read_entry(path: Path) -> bytes:
    """An entry's exact bytes; a line feed that an editor or a shell added is not part of them."""
    return read_file(path, MAX_ENTRY_BYTES + 1).removesuffix(b"\n")
