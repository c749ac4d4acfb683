"""Reading the audit log, for auditors."""

from collections.abc import Sequence
from dataclasses import dataclass

from ironwork_server.core.names import PageTokens, page_size
from ironwork_server.core.values import Action
from ironwork_server.custody.gate import Permit
from ironwork_server.journal import EntryFilter, JournalReader

DEFAULT_PAGE = 100
MAX_PAGE = 1000
# Page tokens belong to the log, not to a workspace.
SCOPE = "audit"


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
        self, permit: Permit, wanted: EntryFilter, *, size: int, token: str
    ) -> EntryPage:
        """Errors: InvalidRequest (page_size, page_token), Unavailable. A page may hold fewer
        entries than asked for, or none, and still be followed by another.
        """
        permit.require(Action.READ_AUDIT)
        limit = page_size(size, default=DEFAULT_PAGE, maximum=MAX_PAGE)
        last = self._tokens.parse(token, SCOPE)
        page = await self._reader.page(
            after_index=-1 if last is None else last, limit=limit, filter=wanted
        )
        return EntryPage(
            origin=self._origin,
            entries=page.entries,
            next_page_token=""
            if page.next_index is None
            else self._tokens.make(SCOPE, page.next_index),
        )
