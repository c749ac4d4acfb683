"""`ironwork-audit verify`."""

import argparse
import os
from pathlib import Path
from typing import Final

from ironwork_audit.cli import options as shared
from ironwork_audit.cli import show
from ironwork_audit.tlog.checkpoint import Checkpoint
from ironwork_audit.verify import Verdict, verify

HELP: Final = "check a whole log offline: every entry, every hash, the signature"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    shared.add_log(parser)
    shared.add_key(parser)
    shared.add_witness_keys(parser)
    parser.add_argument(
        "--since",
        type=Path,
        metavar="FILE",
        help="an older checkpoint, kept elsewhere: finds a rewritten or rolled-back log",
    )
    parser.add_argument(
        "--pruned",
        action="store_true",
        help="take a log whose oldest entries were moved to an archive: checks what is there",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON line")


def run(options: argparse.Namespace) -> int:
    """0 where all is well, 1 where something was found. Raises Unreadable, BadNote."""
    key = shared.key_of(options)
    witnesses = shared.witness_keys_of(options)
    since = None if options.since is None else shared.read_file(options.since)
    with shared.log_of(options) as source, show.progress_bar("verifying") as progress:
        verdict = verify(
            source,
            key,
            witnesses=witnesses,
            since=since,
            pruned=options.pruned,
            workers=options.workers,
            progress=progress,
        )
    if options.json:
        show.as_json(_document(verdict, key.name))
    else:
        _show(verdict, key.name)
    return 1 if verdict.finding else 0


def _document(verdict: Verdict, origin: str) -> dict[str, object]:
    document: dict[str, object] = {"ok": verdict.finding is None, "origin": origin}
    if verdict.checkpoint is not None:
        document |= {"size": verdict.checkpoint.size, "root": verdict.checkpoint.root.hex()}
    document["pruned"] = verdict.pruned
    if verdict.finding is not None:
        return document | {"index": verdict.finding.index, "problem": verdict.finding.what}
    times = verdict.times or (None, None)
    return document | {
        "unfinished": verdict.unfinished,
        "unlinked": verdict.unlinked,
        "unsigned": verdict.unsigned,
        "first_time_ms": times[0],
        "last_time_ms": times[1],
        "since_size": verdict.since,
        "witnessed_size": verdict.witnessed,
        "witnesses": {item.name: item.timestamp for item in verdict.cosignatures},
    }


def _show(verdict: Verdict, origin: str) -> None:
    out = show.console()
    checkpoint, finding = verdict.checkpoint, verdict.finding
    if finding is not None:
        place = origin if finding.index is None else f"{origin}: entry {finding.index}"
        show.line(out, "BAD", "bold red", f"{place}: {finding.what}")
        _show_pruned(verdict)
    elif checkpoint is not None:
        _show_good(verdict, checkpoint)


def _show_good(verdict: Verdict, checkpoint: Checkpoint) -> None:
    out = show.console()
    root = f"root {checkpoint.root.hex()}"
    show.line(out, "OK", "bold green", f"{checkpoint.origin}: {checkpoint.size:,} entries, {root}")
    _show_pruned(verdict)
    if verdict.pruned:
        kept = checkpoint.size - verdict.pruned
        text = f"checked: the {kept:,} entries from {verdict.pruned:,} on, and every hash above"
        show.line(out, "", "", text)
    if verdict.unlinked:
        text = f"{verdict.unlinked:,} outcomes belong to intents that are not here"
        show.line(out, "note", "yellow", text)
    if verdict.times:
        first, last = map(show.shown_time, verdict.times)
        show.line(out, "", "", f"from {first} to {last}")
    if verdict.since is not None:
        show.line(out, "", "", f"grown from the older checkpoint's {verdict.since:,} entries")
    if verdict.unfinished:
        text = f"{verdict.unfinished:,} calls without an outcome: under way, or cut off by an end"
        show.line(out, "note", "yellow", text)
    if verdict.unsigned:
        text = f"{verdict.unsigned:,} entries after it are durable and not yet signed"
        show.line(out, "note", "yellow", text)
    for item in verdict.cosignatures:
        time = show.shown_time(item.timestamp * 1000)
        text = f"{verdict.witnessed:,} entries witnessed by {item.name} at {time}"
        show.line(out, "OK", "bold green", text)
    if not verdict.cosignatures:
        text = "UNWITNESSED: no witness's key was given, so a rewrite by the log's own key shows "
        show.line(out, "note", "yellow", text + "only against an older checkpoint (--since)")


def _show_pruned(verdict: Verdict) -> None:
    if verdict.pruned:
        text = f"NOT CHECKED: entries 0 to {verdict.pruned - 1:,}, which are not here: only their "
        text += "hashes in the tiles above are under the signed root"
        show.line(show.console(), "note", "yellow", text)
