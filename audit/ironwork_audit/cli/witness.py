"""`ironwork-audit witness`: shows a log's checkpoints to a witness, from the log's files alone.

For a log whose writer speaks to no witness by itself, such as the HSM process: whoever can read its
folder, or its URL, runs this beside it. It needs no key but the log's verifier key.
"""

import argparse
import time
from pathlib import Path
from typing import Final

from ironwork_audit.cli import options as shared
from ironwork_audit.cli import show
from ironwork_audit.cli.options import WrongUsage
from ironwork_audit.log.errors import WriteFailed
from ironwork_audit.log.filesystem import OperatingSystem, sync_folder, write_file
from ironwork_audit.source import (
    FolderSource,
    Source,
    Unreadable,
    read_checkpoint,
    read_tile,
)
from ironwork_audit.tlog.note import VerifierKey
from ironwork_audit.tlog.proofs import consistency_proof
from ironwork_audit.tlog.signed import SignatureRefused, open_checkpoint
from ironwork_audit.tlog.tiles import BadTile, TileReader
from ironwork_audit.witness import WITNESSED, add_checkpoint
from ironwork_audit.witness_post import WitnessPost
from ironwork_audit.witness_submission import Ask, Standing, WitnessConflict, WitnessFailed

HELP: Final = "have a log's newest checkpoint signed by a witness, and keep what it signed"
POLL_S: Final = 1.0
# After a failure, with --follow.
BACKOFF_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    shared.add_log(parser)
    shared.add_key(parser)
    parser.add_argument("--url", required=True, help="the witness's URL (C2SP tlog-witness)")
    parser.add_argument(
        "--witness-key", required=True, metavar="KEY", help="its verifier key, or a file"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"where the cosigned checkpoint is kept (LOG/{WITNESSED}, where LOG is a folder)",
    )
    parser.add_argument("--follow", action="store_true", help="go on with each new checkpoint")


def run(options: argparse.Namespace) -> int:
    """0 once it is signed, 1 where the witness knows another history or the log is not what it
    was. Raises Unreadable, BadNote, WrongUsage.
    """
    options.witness_key = [options.witness_key]
    (witness_key,) = shared.witness_keys_of(options)
    try:
        post = WitnessPost(options.url)
    except ValueError as error:
        raise WrongUsage(f"--url: {error}") from None
    with shared.log_of(options) as source:
        out = options.out or _beside(source)
        shower = _Shower(source, post, shared.key_of(options), witness_key, out)
        try:
            if options.follow:
                shower.follow()
            shower.show()
        except (WitnessConflict, _NotTheLog) as problem:
            show.line(show.console(), "BAD", "bold red", f"{shower.origin}: {_said(problem)}")
            return 1
        except WitnessFailed as failed:
            raise Unreadable(f"{options.url}: {failed.reason}") from None
    return 0


class _NotTheLog(Exception):
    """The log's checkpoint is not by its key, or its tiles are not its."""


class _Shower:
    """One log and one witness."""

    def __init__(
        self,
        source: Source,
        post: WitnessPost,
        key: VerifierKey,
        witness_key: VerifierKey,
        out: Path,
    ) -> None:
        """Raises Unreadable where out is there and is not what this witness signed."""
        self.origin = key.name
        self._source = source
        self._post = post
        self._key = key
        self._out = out
        self._standing = Standing(witness_key, key)
        self._signed = b""
        self._resume()

    def show(self) -> None:
        """Have the newest checkpoint signed, where it is not. Raises WitnessFailed, _NotTheLog,
        Unreadable, OSError.
        """
        note = read_checkpoint(self._source)
        try:
            size = open_checkpoint(note, self._key).checkpoint.size
        except SignatureRefused as refused:
            raise _NotTheLog(str(refused)) from None
        if note == self._signed:
            return
        steps = self._standing.submission(note)
        ask = next(steps)
        while True:
            body = add_checkpoint(ask.old_size, self._proof(ask), note)
            answer = self._post.add_checkpoint(body)
            try:
                ask = steps.send(answer)
            except StopIteration:
                break
        self._keep()
        self._signed = note
        name, at = self._standing.key.name, show.shown_time(self._standing.timestamp * 1000)
        text = f"{self.origin}: {size:,} entries witnessed by {name} at {at}"
        show.line(show.console(), "OK", "bold green", text)
        if self._standing.forgot:
            self._standing.forgot = False
            text = f"{name} answered from a smaller tree than it had signed: its memory was lost"
            show.line(show.console(), "note", "yellow", text)

    def follow(self) -> None:
        """Show every checkpoint that comes, until interrupted. Raises WitnessConflict, _NotTheLog:
        whoever runs it has to look.
        """
        failures = 0
        while True:
            pause = POLL_S
            try:
                self.show()
                failures = 0
            except WitnessConflict:
                raise
            except (WitnessFailed, Unreadable) as error:
                pause = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                failures += 1
                reason = error.reason if isinstance(error, WitnessFailed) else str(error)
                text = f"{reason}; asked again in {pause:g} s"
                show.line(show.console(), "note", "yellow", text)
            time.sleep(pause)

    def _resume(self) -> None:
        try:
            kept = shared.read_file(self._out) if self._out.exists() else None
            if kept is not None:
                self._standing.resume(kept)
        except ValueError:
            raise Unreadable(
                f"{self._out}: not a checkpoint of this log that this witness signed; give --out"
                " another place"
            ) from None

    def _proof(self, ask: Ask) -> list[bytes]:
        reader = TileReader(ask.size, lambda tile: read_tile(self._source, tile))
        try:
            return list(consistency_proof(ask.old_size, ask.size, reader))
        except BadTile as error:
            raise _NotTheLog(str(error)) from None

    def _keep(self) -> None:
        files = OperatingSystem()
        try:
            write_file(files, self._out, self._standing.note or b"")
            sync_folder(files, self._out.parent)
        except WriteFailed as failed:
            raise Unreadable(f"{self._out}: {failed.what}") from None


_SAID: Final = {
    "WITNESS_CONFLICT": "the witness has signed a history that this log has not grown from",
    "WITNESS_AHEAD": "the witness has signed more entries than this log has",
}


def _said(problem: Exception) -> str:
    if isinstance(problem, WitnessConflict):
        return f"{problem.reason}: {_SAID[problem.reason]}"
    return str(problem)


def _beside(source: Source) -> Path:
    if not isinstance(source, FolderSource):
        raise WrongUsage("--out: say where the cosigned checkpoint of a URL's log is to be kept")
    return source.folder / WITNESSED
