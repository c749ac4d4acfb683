"""`ironwork-audit prove`."""

import argparse
import sys
from pathlib import Path
from typing import Final

from ironwork_audit import prove
from ironwork_audit.cli import options as shared
from ironwork_audit.cli import show
from ironwork_audit.parse import NotAnEvent, parse
from ironwork_audit.prove import CONSISTENCY, NotProven, Proof
from ironwork_audit.tlog.checkpoint import Checkpoint
from ironwork_audit.tlog.note import VerifierKey, parse_note
from ironwork_audit.tlog.proof_text import MAX_PROOF_BYTES

HELP: Final = "prove that an entry is in the log, or that the log has only grown; or check a proof"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "log", metavar="LOG", nargs="?", help="the log's folder, or the URL of its files"
    )
    parser.add_argument("index", metavar="INDEX", nargs="?", type=int, help="the entry to prove")
    shared.add_key(parser)
    parser.add_argument(
        "--entry", type=Path, metavar="FILE", help="the entry to prove, as its exact bytes"
    )
    parser.add_argument(
        "--since", type=Path, metavar="FILE", help="prove growth since this older checkpoint"
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help="check this proof, offline")
    parser.add_argument("--json", action="store_true", help="the proof as one JSON line")


def run(options: argparse.Namespace) -> int:
    """0 where it is proven, 1 where it is not. Raises Unreadable, BadNote, WrongUsage."""
    key = shared.key_of(options)
    try:
        if options.check is not None:
            _check(options, key)
        else:
            proof = _proof(options, key)
            sys.stdout.buffer.write(proof.json() if options.json else proof.text())
    except NotProven as refused:
        show.line(show.console(), "BAD", "bold red", str(refused))
        return 1
    return 0


def _proof(options: argparse.Namespace, key: VerifierKey) -> Proof:
    asked = [options.index, options.entry, options.since]
    if options.log is None or sum(item is not None for item in asked) != 1:
        raise shared.WrongUsage("prove: give LOG and one of INDEX, --entry, --since; or --check")
    with shared.log_of(options) as source:
        if options.index is not None:
            return prove.prove_inclusion(source, key, options.index)
        if options.entry is not None:
            return prove.prove_entry(source, key, shared.read_entry(options.entry))
        return prove.prove_consistency(source, key, shared.read_file(options.since))


def _check(options: argparse.Namespace, key: VerifierKey) -> None:
    if (options.log, options.index, options.since) != (None, None, None):
        raise shared.WrongUsage("prove: --check takes no log: it works offline")
    proof = Proof.parse(shared.read_file(options.check, MAX_PROOF_BYTES))
    entry = None if options.entry is None else shared.read_entry(options.entry)
    checkpoint = prove.check(proof, key, entry).checkpoint
    out = show.console()
    if proof.kind == CONSISTENCY:
        old = Checkpoint.parse(parse_note(proof.old).text)
        text = f"{old.origin}: {old.size:,} entries grew into {checkpoint.size:,}"
        show.line(out, "OK", "bold green", f"{text}, none changed")
        return
    text = f"{checkpoint.origin}: entry {proof.index} of {checkpoint.size:,}"
    show.line(out, "OK", "bold green", text)
    if proof.entry is not None:
        show.line(out, "", "", _printable(proof.entry))


def _printable(entry: bytes) -> str:
    """An entry of our form has no control characters; whatever else was logged is escaped."""
    try:
        parse(entry)
    except NotAnEvent:
        return repr(entry)
    return entry.decode()
