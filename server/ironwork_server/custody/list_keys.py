"""Listing a workspace's keys, newest first, each as a mask."""

from collections.abc import Sequence
from dataclasses import dataclass

from ironwork_server.core.names import PageTokens, page_size
from ironwork_server.core.ports import KeyStore
from ironwork_server.core.values import Action
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.masked import MaskedKey, mask_row

DEFAULT_PAGE = 50
MAX_PAGE = 200


@dataclass(frozen=True, slots=True)
class Page:
    """One page; next_page_token is empty after the last."""

    keys: Sequence[MaskedKey]
    next_page_token: str


class KeyLister:
    """The use case ListMasked."""

    def __init__(self, *, store: KeyStore, tokens: PageTokens) -> None:
        self._store = store
        self._tokens = tokens

    async def list(self, permit: Permit, *, size: int, token: str) -> Page:
        """Errors: InvalidRequest (page_size, page_token), Unavailable."""
        permit.require(Action.LIST_MASKED)
        limit = page_size(size, default=DEFAULT_PAGE, maximum=MAX_PAGE)
        before = self._tokens.parse(token, permit.workspace)
        current = await self._store.current(permit.workspace)
        # One row more than asked for tells whether another page follows.
        rows = await self._store.page(permit.workspace, before_sequence=before, limit=limit + 1)
        shown = rows[:limit]
        return Page(
            keys=[
                mask_row(row, current=current is not None and row.key_id == current.key_id)
                for row in shown
            ],
            next_page_token=self._tokens.make(permit.workspace, shown[-1].sequence)
            if len(rows) > limit
            else "",
        )
