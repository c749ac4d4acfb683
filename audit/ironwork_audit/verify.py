"""Verifies a log offline: from its files and the verifier key alone.

Every entry's bytes against its hash, every hash against the tiles of every level, the root against
the signed checkpoint; every entry's origin, index and form; every outcome against its intent. With
an older checkpoint, that the log only grew since.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Final

from ironwork_audit.source import (
    FolderSource,
    NotThere,
    Source,
    Unreadable,
    read_checkpoint,
    read_tile,
)
from ironwork_audit.tlog.checkpoint import Checkpoint
from ironwork_audit.tlog.note import MAX_NOTE_BYTES, BadNote, VerifierKey, parse_note
from ironwork_audit.tlog.signed import (
    Cosignature,
    SignatureRefused,
    SignedCheckpoint,
    open_checkpoint,
)
from ironwork_audit.tlog.tiles import TILE_HEIGHT, BadTile, TileReader
from ironwork_audit.tlog.tree import Frontier, frontier_of
from ironwork_audit.verify_chunk import CHUNK_ENTRIES, Chunk, Finding, Found, Links, check_chunk
from ironwork_audit.verify_levels import Levels
from ironwork_audit.verify_pruned import first_kept, missing, roots_of_missing
from ironwork_audit.verify_unsigned import check_unsigned
from ironwork_audit.witness import WITNESSED

# A chunk's result takes minutes only on a machine that is stuck.
_CHUNK_DEADLINE_S: Final = 600.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result. finding: None where all is well. checkpoint: None where none could be opened.
    unfinished: intents without an outcome. times: milliseconds since 1970, of the first and the
    last entry. since: size of the older checkpoint that the log has grown from. unsigned: entries
    that the log's folder holds after the checkpoint's. witnessed: of how many entries the
    cosignatures are; None where no witness's key was given. pruned: the oldest entries, which are
    not there: of them only the hashes were checked, from the tiles above. unlinked: outcomes whose
    intents are among those.
    """

    finding: Finding | None
    checkpoint: Checkpoint | None = None
    cosignatures: tuple[Cosignature, ...] = ()
    unfinished: int = 0
    times: tuple[int, int] | None = None
    since: int | None = None
    unsigned: int = 0
    witnessed: int | None = None
    pruned: int = 0
    unlinked: int = 0


def verify(
    source: Source,
    key: VerifierKey,
    *,
    witnesses: Sequence[VerifierKey] = (),
    since: bytes | None = None,
    pruned: bool = False,
    workers: int = 1,
    progress: Progress = lambda _done, _size: None,
) -> Verdict:
    """Verify the log under its newest checkpoint.

    witnesses: must all have signed it, or one before it that the log publishes beside it
    (`checkpoint.witnessed`) and from which it has grown. since: an older checkpoint's bytes, signed
    by the same key. pruned: take a log whose oldest full bundles were moved to an archive; else the
    first of them is a finding, though the rest is checked all the same. workers: processes; 1 for
    this one alone. progress: told (entries done, entries). Raises Unreadable, where
    nothing can be said of the log.
    """
    try:
        opened, witnessed = _open(source, key, witnesses)
        old = open_checkpoint(since, key).checkpoint if since is not None else None
    except (SignatureRefused, BadNote) as refused:
        return Verdict(Finding(None, str(refused)))
    checkpoint = opened.checkpoint
    verdict = Verdict(None, checkpoint, witnessed.cosignatures)
    first = first_kept(source, checkpoint.size)
    verdict = replace(verdict, pruned=first)
    scan = _Scan(source, checkpoint, first)
    try:
        for older in (witnessed.checkpoint, old):
            _check_size(checkpoint, older)
        scan.pass_over()
        for chunk in _chunks(source, checkpoint, first, workers):
            scan.take(chunk)
            progress(scan.frontier.size, checkpoint.size)
        scan.finish()
        for older in (witnessed.checkpoint, old):
            _check_grown(source, checkpoint, older)
        unsigned = 0
        if isinstance(source, FolderSource):
            unsigned = check_unsigned(source, checkpoint.origin, checkpoint.size, scan.links, first)
        if first and not pruned:
            raise missing(source, checkpoint.size, first)
    except Found as found:
        return replace(verdict, finding=found.finding)
    return replace(
        verdict,
        unfinished=len(scan.links.open),
        times=scan.times,
        since=None if old is None else old.size,
        unsigned=unsigned,
        witnessed=witnessed.checkpoint.size if witnesses else None,
        unlinked=scan.unlinked + len(scan.links.loose),
    )


def _open(
    source: Source, key: VerifierKey, witnesses: Sequence[VerifierKey]
) -> tuple[SignedCheckpoint, SignedCheckpoint]:
    """The newest checkpoint, and the one that the witnesses have signed: the same, or the one that
    is published beside it, since witnesses take a moment. Raises SignatureRefused, BadNote.
    """
    # In this order: a log that is being written only grows in between.
    beside = _read_witnessed(source) if witnesses else None
    newest = read_checkpoint(source)
    signatures = parse_note(newest).signatures
    here = [key for key in witnesses if any(item.is_of(key) for item in signatures)]
    if len(here) == len(witnesses) or beside is None:
        opened = open_checkpoint(newest, key, witnesses)
        return opened, opened
    return open_checkpoint(newest, key, here), open_checkpoint(beside, key, witnesses)


def _read_witnessed(source: Source) -> bytes | None:
    try:
        return source.read(WITNESSED, MAX_NOTE_BYTES)
    except NotThere:
        return None


class _Scan:
    """Joins the chunks, in order. first: where what is there begins."""

    def __init__(self, source: Source, checkpoint: Checkpoint, first: int) -> None:
        self._source = source
        self._checkpoint = checkpoint
        self._first = first
        self.unlinked = 0
        self._levels = Levels(source, checkpoint.size)
        self.frontier = Frontier()
        self.links = Links()
        self.times: tuple[int, int] | None = None

    def pass_over(self) -> None:
        """The bundles that are not there: by their hashes in the level above, which the signed
        root holds to. Raises Found, Unreadable.
        """
        for root in roots_of_missing(self._source, self._checkpoint.size, self._first):
            self._levels.add(root)
            self.frontier.append_subtree(TILE_HEIGHT, root)

    def take(self, chunk: Chunk) -> None:
        """The next chunk. Raises Found, for the first bad entry; Unreadable."""
        findings = [self._grow(chunk), self._settle(chunk), chunk.finding]
        if any(findings):
            # The tiles above may be wrong at an entry that is further on the left.
            findings.append(_found(self._levels.finish))
            first = min(filter(None, findings), key=lambda finding: finding.index or 0)
            raise Found(first.index, first.what)
        self.links.open |= chunk.links.open
        self.links.unsettled |= chunk.links.unsettled
        if chunk.times:
            self.times = (self.times or chunk.times)[0], chunk.times[1]

    def finish(self) -> None:
        """After the last chunk. Raises Found, Unreadable."""
        self._levels.finish()
        if self.frontier.root() != self._checkpoint.root:
            raise Found(
                None,
                f"entries and tiles agree with each other, but not with the signed root of "
                f"{self._checkpoint.size} entries: the log was rewritten as a whole",
            )

    def _grow(self, chunk: Chunk) -> Finding | None:
        for root in chunk.roots:
            finding = _found(self._levels.add, root)
            if finding is not None:
                return finding
            self.frontier.append_subtree(TILE_HEIGHT, root)
        for leaf in chunk.rest:
            self.frontier.append(leaf)
        return None

    def _settle(self, chunk: Chunk) -> Finding | None:
        for outcome in chunk.links.loose:
            if outcome[1] < self._first:
                self.unlinked += 1
                continue
            finding = _found(self.links.settle, *outcome)
            if finding is not None:
                return finding
        return None


def _found(check: Callable[..., None], *arguments: object) -> Finding | None:
    try:
        check(*arguments)
    except Found as found:
        return found.finding
    return None


def _chunks(source: Source, checkpoint: Checkpoint, first: int, workers: int) -> Iterator[Chunk]:
    """Every chunk of the log from its first entry on, verified, in order; a few at a time are under
    way.
    """
    numbers = range(first // CHUNK_ENTRIES, -(-checkpoint.size // CHUNK_ENTRIES))
    origin, size = checkpoint.origin, checkpoint.size
    if workers <= 1 or len(numbers) <= 1:
        for number in numbers:
            yield check_chunk(source, origin, size, number, first)
        return
    # Not by fork: a caller may have threads.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    under_way: deque[Future[Chunk]] = deque()
    try:
        for number in numbers:
            under_way.append(pool.submit(_check_elsewhere, source, origin, size, number, first))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result(_CHUNK_DEADLINE_S)
        while under_way:
            yield under_way.popleft().result(_CHUNK_DEADLINE_S)
    except BrokenProcessPool:
        raise Unreadable("a worker process of the verifier ended (out of memory?)") from None
    except TimeoutError:
        raise Unreadable("a worker process of the verifier does not answer") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _check_elsewhere(source: Source, origin: str, size: int, number: int, first: int) -> Chunk:
    """In a worker process, which has a copy of the source of its own."""
    try:
        return check_chunk(source, origin, size, number, first)
    finally:
        source.close()


def _check_size(checkpoint: Checkpoint, old: Checkpoint | None) -> None:
    if old is not None and old.size > checkpoint.size:
        raise Found(
            checkpoint.size,
            f"rolled back: the older checkpoint has {old.size} entries, this one "
            f"{checkpoint.size}; those from here on are gone",
        )


def _check_grown(source: Source, checkpoint: Checkpoint, old: Checkpoint | None) -> None:
    """That the verified tree begins with the old one."""
    if old is None or old == checkpoint:
        return
    reader = TileReader(checkpoint.size, lambda tile: read_tile(source, tile))
    try:
        root = frontier_of(old.size, reader).root()
    except (NotThere, BadTile) as error:
        raise Found(None, str(error)) from None
    if root != old.root:
        raise Found(
            None,
            f"rewritten: the first {old.size} entries are not those that the older checkpoint "
            "signed",
        )
