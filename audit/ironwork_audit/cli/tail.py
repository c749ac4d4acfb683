"""`ironwork-audit tail`."""

import argparse
import sys
import time
from typing import Final

from rich.console import Console
from rich.text import Text

from ironwork_audit.cli import options as shared
from ironwork_audit.cli import plain, show
from ironwork_audit.cli.selection import add_selection, selection_of
from ironwork_audit.event import INTENT, Event
from ironwork_audit.follow import Follower
from ironwork_audit.parse import NotAnEvent, ParsedEvent, parse
from ironwork_audit.select import BadEntry, Selection, summary_of
from ironwork_audit.source import Unreadable

HELP: Final = "follow a log: one line for each call, with its outcome"
POLL_S: Final = 1.0

# Details worth their place on a line, in this order.
_SHOWN: Final = (
    ("http_status", "{}"),
    ("outcome", "{}"),
    ("route", "{}"),
    ("input_tokens", "{} in"),
    ("output_tokens", "{} out"),
    ("duration_ms", "{} ms"),
    ("mechanism", "{}"),
    ("verdict", "{}"),
    ("key_mask", "{}"),
    ("count", "{}×"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    shared.add_log(parser)
    parser.add_argument(
        "--key", help="the log's verifier key, or a file that holds it: checks each checkpoint"
    )
    parser.add_argument(
        "-n",
        "--last",
        type=int,
        default=20,
        metavar="N",
        help="entries to begin with (%(default)s)",
    )
    parser.add_argument("--no-follow", action="store_true", help="end after what is there")
    parser.add_argument("--intents", action="store_true", help="a line for each intent too")
    parser.add_argument("--json", action="store_true", help="each entry's exact bytes, all phases")
    add_selection(parser)


def run(options: argparse.Namespace) -> int:
    """0 at the end (--no-follow), 1 where the log is not what it was. Raises Unreadable, BadNote,
    WrongUsage.
    """
    if options.last < 0:
        raise shared.WrongUsage("--last: not below 0")
    key = None if options.key is None else shared.key_of(options)
    selection = selection_of(options)
    try:
        with shared.log_of(options) as source:
            _follow(Follower(source, key, options.last), selection, options)
    except BadEntry as bad:
        sys.stdout.flush()
        plain.error(f"BAD  {bad}")
        return 1
    return 0


def _follow(follower: Follower, selection: Selection, options: argparse.Namespace) -> None:
    out = show.console()
    trouble, started = "", False
    while True:
        try:
            for index, entry in follower.news():
                _show(out, index, entry, selection, options)
            trouble, started = "", True
        except Unreadable as error:
            # At first it is an error; later, a server that restarts is waited for.
            if not started or options.no_follow:
                raise
            if str(error) != trouble:
                plain.error(f"ironwork-audit: {error}; trying again")
            trouble = str(error)
        sys.stdout.flush()
        if options.no_follow:
            return
        time.sleep(POLL_S)


def _show(
    out: Console, index: int, entry: bytes, selection: Selection, options: argparse.Namespace
) -> None:
    if not selection.takes(summary_of(index, entry)):
        return
    try:
        parsed = parse(entry)
    except NotAnEvent as refused:
        raise BadEntry(f"entry {index}: {refused}") from None
    if options.json:
        sys.stdout.buffer.write(entry + b"\n")
    elif options.intents or parsed.event.phase != INTENT:
        out.print(_line(parsed))


def _line(parsed: ParsedEvent) -> Text:
    event = parsed.event
    mark, style = _mark(event)
    where = "/".join(part for part in (event.workspace, event.key_id) if part)
    who = event.principal.removeprefix("spiffe://") or event.peer or "the service"
    claims = " ".join(part for part in (event.task, event.agent) if part)
    told = [text.format(event.details[name]) for name, text in _SHOWN if name in event.details]
    time_ = event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Text.assemble(
        (f"{time_} ", "dim"),
        (f"{mark} ", style),
        (f"{event.operation:<14} ", "bold"),
        (f"{where:<24} ", "cyan"),
        who,
        (f" [{claims}]" if claims else "", "dim"),
        (f" {event.reason}" if event.reason else "", style),
        (f"  {' · '.join(told)}" if told else "", ""),
        (f"  #{parsed.sequence}", "dim"),
    )


def _mark(event: Event) -> tuple[str, str]:
    if event.phase == INTENT:
        return "…", "yellow"
    if event.success is None:
        return "·", "blue"
    return ("✓", "green") if event.success else ("✗", "bold red")
