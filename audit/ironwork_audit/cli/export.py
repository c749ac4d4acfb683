"""`ironwork-audit export`."""

import argparse
import sys
from typing import Final

from ironwork_audit.cli import options as shared
from ironwork_audit.cli import plain, show
from ironwork_audit.cli.selection import add_selection, selection_of
from ironwork_audit.export_cef import to_cef
from ironwork_audit.parse import NotAnEvent
from ironwork_audit.select import BadEntry, of_our_form, stored, summary_of, unchecked_size

HELP: Final = "write entries as OCSF JSON lines, or as CEF, for a SIEM"
_PROGRESS_EVERY: Final = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    shared.add_log(parser)
    parser.add_argument("--format", choices=("ocsf", "cef"), default="ocsf", help="(%(default)s)")
    parser.add_argument(
        "--start-index", type=int, default=0, metavar="N", help="leave out the entries before N"
    )
    add_selection(parser)


def run(options: argparse.Namespace) -> int:
    """0 where all entries could be read, 1 at the first that is none. Raises Unreadable, BadNote,
    WrongUsage.
    """
    try:
        _export(options)
    except BadEntry as bad:
        # Standard output holds the entries.
        plain.error(f"BAD  {bad}")
        return 1
    return 0


def _export(options: argparse.Namespace) -> None:
    selection = selection_of(options)
    if options.start_index < 0:
        raise shared.WrongUsage("--start-index: not below 0")
    out = sys.stdout.buffer
    with shared.log_of(options) as source, show.progress_bar("exporting") as progress:
        size = unchecked_size(source)
        for index, entry in of_our_form(stored(source, options.start_index, size)):
            if index % _PROGRESS_EVERY == 0:
                progress(index, size)
            summary = summary_of(index, entry)
            if selection.takes(summary):
                out.write((entry if options.format == "ocsf" else _cef(index, entry)) + b"\n")


def _cef(index: int, entry: bytes) -> bytes:
    try:
        return to_cef(entry).encode()
    except NotAnEvent as refused:
        raise BadEntry(f"entry {index}: {refused}") from None
