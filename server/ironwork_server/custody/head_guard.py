"""One origin, one log: held against the newest head that the store keeps (ADR 0027).

The log's folder cannot tell that it is an older copy of itself, nor that another folder is signed
under its name: the store can, which is apart from it. A head is recorded there before it is signed,
in the place of the last one that is known; so the store's is never older than the published one,
and of two processes that sign one origin the second is noticed before it signs.
"""

import logging
from typing import Final, Protocol

from ironwork_audit.log import Tree
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.ports import HeadStore
from ironwork_server.core.values import LogHead

log = logging.getLogger(__name__)

ORIGIN_TAKEN: Final = "AUDIT_ORIGIN_TAKEN"
ROLLED_BACK: Final = "AUDIT_ROLLED_BACK"


class GuardedJournal(Protocol):
    """What the guard asks of the log. tree: of the entries in durable tiles."""

    @property
    def origin(self) -> str: ...

    @property
    def folder_id(self) -> str: ...

    @property
    def tree(self) -> Tree: ...

    async def tree_at(self, size: int) -> Tree | None: ...


class HeadGuard:
    """For one open log. Errors of the store and of the log pass: they are worth another try."""

    def __init__(self, journal: GuardedJournal, heads: HeadStore) -> None:
        self._journal = journal
        self._heads = heads
        self._known: LogHead | None = None
        # Set once, for good.
        self.taken = False

    async def begin(self, published: int = 0) -> None:
        """Before the first signature of a run. published: the size that a checkpoint was published
        for. Raises Unavailable: AUDIT_ORIGIN_TAKEN where the origin is another folder's,
        AUDIT_ROLLED_BACK where this log lacks entries that were signed.
        """
        found = await self._heads.log_head(self._journal.origin)
        _compare(found, published)
        if found is None:
            await self.record(self._journal.tree)
            return
        if found.folder_id != self._journal.folder_id:
            raise taken()
        if not await self._grew_from(found):
            raise _rolled_back()
        self._known = found

    async def record(self, tree: Tree) -> None:
        """Before this tree's head is signed. Raises Unavailable; AUDIT_ORIGIN_TAKEN is for good."""
        self.require()
        new = LogHead(self._journal.origin, self._journal.folder_id, tree.size, tree.root)
        if not await self._heads.swap_log_head(self._known, new):
            # Ours, by a write that did not answer; an older database's; or another process's.
            await self._know()
            if not await self._heads.swap_log_head(self._known, new):
                raise Unavailable(
                    "The audit log's head in the store changes under us.",
                    reason="CHECKPOINT_UNAVAILABLE",
                    retry_after_s=1.0,
                )
        self._known = new

    def require(self) -> None:
        """Raises Unavailable (AUDIT_ORIGIN_TAKEN) once another process has signed this origin."""
        if self.taken:
            raise taken()

    async def _know(self) -> None:
        found = await self._heads.log_head(self._journal.origin)
        if found is not None and (
            found.folder_id != self._journal.folder_id or not await self._grew_from(found)
        ):
            self.taken = True
            log.error("audit.origin_taken")
            raise taken()
        _compare(found, 0 if self._known is None else self._known.size)
        self._known = found

    async def _grew_from(self, head: LogHead) -> bool:
        """Whether this log is the signed one, grown."""
        return await self._journal.tree_at(head.size) == Tree(head.size, head.root)


def _compare(found: LogHead | None, signed: int) -> None:
    """The store's head is recorded before it is signed, so it is never behind a signed one: unless
    the database was put back to an earlier state. What was deleted since is then in it again, and
    only the process knows through which it was.
    """
    size = 0 if found is None else found.size
    if size < signed:
        log.error("store.restored", extra={"count": signed - size})


def taken() -> Unavailable:
    """For good: two logs under one name cannot be told apart by who verifies them."""
    return Unavailable(
        "Another audit folder is signed under this audit.origin: give each process an origin and a"
        " folder of its own. Where the folder was lost or replaced, begin a new folder with a new"
        " origin.",
        reason=ORIGIN_TAKEN,
    )


def _rolled_back() -> Unavailable:
    return Unavailable(
        "The audit folder lacks entries that were signed: it is an older copy, or was changed."
        " Put the newest folder back; where it is lost, keep this one as an archive and begin a new"
        " folder with a new origin.",
        reason=ROLLED_BACK,
    )
