"""Reading the audit log, for auditors."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ironwork_server.core.errors import InvalidRequest
from ironwork_server.core.names import PageTokens, page_size
from ironwork_server.core.values import Action
from ironwork_server.custody.gate import Permit
from ironwork_server.journal import EntryFilter, JournalReader

DEFAULT_PAGE = 100
MAX_PAGE = 1000
# Page tokens belong to the log, not to a workspace.
SCOPE = "audit"
# How often a follower looks for what is new, and how many entries it is given at once.
FOLLOW_INTERVAL_S = 0.25
FOLLOW_BATCH = 200


@dataclass(frozen=True, slots=True)
class EntryPage:
    """One page of (index, event) pairs; next_page_token is empty after the last."""

    origin: str
    entries: Sequence[tuple[int, bytes]]
    next_page_token: str


class AuditLister:
    """The use case ListEntries."""

    def __init__(self, *, reader: JournalReader, origin: str, tokens: PageTokens) -> None:
        self._reader = reader
        self._origin = origin
        self._tokens = tokens

    async def list(
        self, permit: Permit, wanted: EntryFilter, *, size: int, token: str, start: int = 0
    ) -> EntryPage:
        """start: the first index of interest. Errors: InvalidRequest (page_size, page_token),
        OutOfRange (AUDIT_PRUNED), Unavailable. A page may hold fewer
        entries than asked for, or none, and still be followed by another.
        """
        permit.require(Action.READ_AUDIT)
        limit = page_size(size, default=DEFAULT_PAGE, maximum=MAX_PAGE)
        last = self._tokens.parse(token, SCOPE)
        page = await self._reader.page(
            after_index=max(start - 1, -1 if last is None else last), limit=limit, filter=wanted
        )
        return EntryPage(
            origin=self._origin,
            entries=page.entries,
            next_page_token=""
            if page.next_index is None
            else self._tokens.make(SCOPE, page.next_index),
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """hashes: in RFC 9162's order. size: of the tree that they lead to. checkpoint: the published
    note, whose tree is that one or a later one.
    """

    size: int
    hashes: Sequence[bytes]
    checkpoint: bytes


class AuditProver:
    """The use cases GetCheckpoint, GetInclusionProof and GetConsistencyProof: nothing is proven of
    entries that no signature covers yet. Errors of each: Unavailable, OutOfRange (AUDIT_PRUNED),
    DataLoss, InvalidRequest.
    """

    def __init__(self, *, reader: JournalReader) -> None:
        self._reader = reader

    async def checkpoint(self, permit: Permit) -> bytes:
        """The published note."""
        permit.require(Action.READ_AUDIT)
        note, _ = await self._reader.checkpoint()
        return note

    async def inclusion(self, permit: Permit, index: int, size: int) -> Proof:
        """That the entry is in the tree of this size; 0: of the checkpoint's."""
        permit.require(Action.READ_AUDIT)
        note, size = await self._signed(size)
        if index >= size:
            raise InvalidRequest.field("index", "is not in the tree of this size")
        return Proof(size, await self._reader.inclusion(index, size), note)

    async def consistency(self, permit: Permit, old_size: int, size: int) -> Proof:
        """That the tree of this size (0: of the checkpoint's) has grown from the old one."""
        permit.require(Action.READ_AUDIT)
        note, size = await self._signed(size)
        if old_size > size:
            raise InvalidRequest.field("old_size", "is larger than the later tree")
        return Proof(size, await self._reader.consistency(old_size, size), note)

    async def _signed(self, size: int) -> tuple[bytes, int]:
        note, signed = await self._reader.checkpoint()
        if size > signed:
            raise InvalidRequest.field("size", "is larger than the published checkpoint's")
        return note, size or signed


class AuditFollower:
    """The use case FollowEntries."""

    def __init__(self, *, reader: JournalReader, origin: str) -> None:
        self.origin = origin
        self._reader = reader

    async def follow(
        self, permit: Permit, wanted: EntryFilter, start: int
    ) -> AsyncIterator[tuple[Sequence[tuple[int, bytes]], int]]:
        """Entries that match, with the index to go on from, as they come; without an end. Errors:
        Unavailable, OutOfRange (AUDIT_PRUNED), DataLoss.
        """
        permit.require(Action.READ_AUDIT)
        after = start - 1
        while True:
            end = self._reader.size - 1
            page = await self._reader.page(after_index=after, limit=FOLLOW_BATCH, filter=wanted)
            # Past the end there may have come more meanwhile: what was looked at went up to here.
            after = max(after, end) if page.next_index is None else page.next_index
            if page.entries:
                after = max(after, page.entries[-1][0])
                yield page.entries, after + 1
            if page.next_index is None:
                await asyncio.sleep(FOLLOW_INTERVAL_S)
