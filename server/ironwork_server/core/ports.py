"""Every interface between the use cases and the world. Values are in core.values, errors in
core.errors.

Rules for whoever implements one: every method has a deadline of its own and raises
core.errors.Unavailable past it; foreign exceptions are mapped here-side, in one place per
implementation; nothing is retried unless the method says so.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from ironwork_hsm import WrappedKey
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import (
    Action,
    AuditEvent,
    AuditReference,
    BreakGlassCopy,
    KeyState,
    LogHead,
    Principal,
    Replay,
    ScreenedRequest,
    StoredKey,
    Swap,
    Validation,
    WrappedRow,
    Wrapping,
)

# --- store -------------------------------------------------------------------------------------


class KeyExists(Exception):
    """The workspace has this key already (same fingerprint); key_id says which."""

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id)
        self.key_id = key_id


class OrganizationDiffers(Exception):
    """The workspace's keys, or those that it had last, are of other organisations than the new."""

    def __init__(self, organizations: frozenset[str]) -> None:
        super().__init__()
        self.organizations = organizations


class TooManyKeys(Exception):
    """The workspace holds as many keys as it may."""


class AlreadyAnswered(Exception):
    """A write with this request_id was done already; replay is its first answer."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.replay = replay


class KeyStore(Protocol):
    """Rows of sealed keys. Reads see every write that returned before them (the primary)."""

    async def next_sequence(self) -> int:
        """A number greater than every one before it, across processes; gaps are allowed."""

    async def add(
        self,
        key: StoredKey,
        *,
        replay: Replay | None,
        max_keys: int,
        allow_different_organization: bool,
    ) -> None:
        """Insert key, and replay, in one transaction.

        Checked inside it, in this order: AlreadyAnswered (same workspace, method, request_id),
        KeyExists, TooManyKeys, OrganizationDiffers (organisations '' are not compared; where no
        key names one, the last that did counts, also when it was deleted).
        """

    async def current(self, workspace: str) -> StoredKey | None:
        """The row with the greatest sequence. The hot read: once for each Claude request."""

    async def get(self, workspace: str, key_id: str) -> StoredKey | None: ...

    async def find(self, workspace: str, fingerprint: bytes) -> StoredKey | None: ...

    async def page(
        self, workspace: str, *, before_sequence: int | None, limit: int
    ) -> Sequence[StoredKey]:
        """At most limit rows with a sequence below before_sequence, newest first."""

    async def delete(
        self,
        workspace: str,
        key_id: str,
        *,
        replay: Callable[[StoredKey | None], Replay] | None,
    ) -> tuple[bool, StoredKey | None]:
        """Destroy the row, leaving no trace of it in the store's files.

        Returns whether there was one, and which row is current after it. replay, called inside
        the transaction with that row, makes the answer to keep; AlreadyAnswered as in add, checked
        first. Nothing is kept where there was no row.
        """

    async def set_state(self, workspace: str, key_id: str, state: KeyState) -> None: ...

    async def record_uses(self, uses: Mapping[tuple[str, str], datetime]) -> None:
        """(workspace, key_id) → last use. Never moves one back; missing rows are ignored."""

    async def settled(self, workspace: str, key_id: str) -> bool:
        """Whether the row is there, once every write that began before this has ended, and as
        durably as if this were one; for writes that raised STORE_UNDECIDED.
        """

    async def find_replay(self, workspace: str, method: str, request_id: str) -> Replay | None: ...

    async def pepper(self) -> WrappedKey | None:
        """The fingerprint pepper, wrapped by the master key; None on a new store."""

    async def create_pepper(
        self, wrapped: WrappedKey, copy: BreakGlassCopy | None = None
    ) -> WrappedKey:
        """Keep it, with its break-glass copy, if there is none; return the one that is kept
        (another process may be first).
        """

    async def switched_version(self, backend: str) -> int | None:
        """The version of this master key to wrap with; None where none was ever switched on. Read
        before each wrap, so that a rotation holds for every process at once.
        """

    async def first_version(self, backend: str, newest: int) -> int:
        """The version that is switched on. Where none ever was, one is in this transaction: the
        greatest of this backend's that wraps something, else the device's newest.
        """

    async def check(self) -> None:
        """A cheap read that shows that the store answers; for health."""

    async def close(self) -> None: ...


class WrapStore(Protocol):
    """Which master key wraps what, for the operator's commands. Safe beside serving processes."""

    async def pepper(self) -> WrappedKey | None: ...

    async def switched_version(self, backend: str) -> int | None: ...

    async def first_version(self, backend: str, newest: int) -> int: ...

    async def wrappings(self) -> Sequence[Wrapping]:
        """Every version that wraps something, is switched on or was retired."""

    async def wrapped_elsewhere(
        self,
        backend: str,
        version: int,
        *,
        after_sequence: int,
        limit: int,
        recipient: str | None = None,
    ) -> Sequence[WrappedRow]:
        """At most limit rows that this version does not wrap, or that have no break-glass copy for
        recipient (if one is given), with a greater sequence, in order.
        """

    async def pepper_copy(self) -> BreakGlassCopy | None:
        """The pepper's break-glass copy."""

    async def copies(self) -> Mapping[str, int]:
        """How many break-glass copies there are for each recipient, the pepper's included."""

    async def copied_for(
        self, recipient: str, *, after_sequence: int, limit: int
    ) -> Sequence[WrappedRow]:
        """At most limit rows that have a copy for recipient, with a greater sequence, in order."""

    async def drop_copies(self, sequences: Sequence[int], recipient: str) -> Sequence[bool]:
        """Delete the copies of these rows (0: the pepper's) that are for recipient, all in one
        transaction; whether each was there. They are in the files until they are erased.
        """

    async def erase(self) -> None:
        """Erase from the files what was deleted, and copies whose place another recipient's took.
        Raises Unavailable where that did not end; it is owed still.
        """

    async def swap(self, swaps: Sequence[Swap]) -> Sequence[bool]:
        """Compare and swap, all in one transaction; whether each was done. A row that was deleted,
        or that has another wrapped key by now, stays as it is. Raises Unavailable
        (MASTER_KEY_VERSION_RETIRED), and then nothing was done.
        """

    async def swap_pepper(
        self, old: WrappedKey, new: WrappedKey, copy: BreakGlassCopy | None = None
    ) -> bool:
        """The same for the pepper."""

    async def switch_on(self, backend: str, version: int) -> None:
        """Wrap with this version from now on, in every process. Raises Unavailable
        (MASTER_KEY_VERSION_RETIRED).
        """

    async def retire(self, backend: str, version: int) -> Wrapping:
        """Take nothing under this version ever again; unless it wraps something, which the answer
        says, and then nothing was done. One transaction with that look.
        """


class HeadStore(Protocol):
    """The newest head of each audit log, apart from the log's own folder (ADR 0027)."""

    async def log_head(self, origin: str) -> LogHead | None:
        """None where no log of this origin was begun with this store."""

    async def swap_log_head(self, old: LogHead | None, new: LogHead) -> bool:
        """Put new in the place of old, of the same origin (None: of no head at all). False, with
        nothing written, where another one is there.
        """


# --- upstream ----------------------------------------------------------------------------------


class StaleCredential(Exception):
    """The read behind this injector is too old to be used; prepare another."""


class Injector(Protocol):
    """Writes the key, once, into the buffer of the socket write (late injection)."""

    @property
    def length(self) -> int:
        """Length of the key in bytes."""

    def inject(self, target: memoryview) -> None:
        """Decrypt the key into target (exactly `length` bytes). Synchronous: the caller writes
        target to the socket and wipes it without a pause in between. Raises StaleCredential
        before anything is written where the key was read too long ago. Can be used once.
        """

    def discard(self) -> None:
        """Wipe what is held, used or not. Safe to call again."""


# Reads the workspace's current key afresh and unwraps it; called when a connection is ready.
Credential = Callable[[], Awaitable[Injector]]


class UpstreamResponse(Protocol):
    """An answer whose head has arrived."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """As received: order, duplicates and values kept, names in their own case. Hop-by-hop
        headers are in it still.
        """

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as the socket gives it, at most 16 KiB each, without HTTP's framing and with
        its content coding untouched. Ends cleanly only where the upstream's framing did; a cut
        raises core.errors.UpstreamFailed.
        """


class SendProgress(Protocol):
    """Set by the upstream client as soon as one byte may have reached Anthropic."""

    sent: bool


class Upstream(Protocol):
    """Sends requests to Anthropic and nobody else. Nothing is retried, but for a reused
    connection that proved dead before anything was written to it.
    """

    def send(
        self,
        request: ScreenedRequest,
        body: AsyncIterator[bytes],
        credential: Credential,
        progress: SendProgress,
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """Entered when the answer's head is there; the upload may still be going on. Leaving it
        early closes the connection. Raises core.errors.Unavailable, UpstreamFailed,
        InvalidRequest (the body is not what content_length said), or what credential or body raise.
        """

    async def close(self) -> None: ...


class KeyValidator(Protocol):
    """Asks Anthropic about a key, with calls that cost no tokens, bounded in time."""

    async def validate(self, key: Secret) -> Validation: ...


# --- access ------------------------------------------------------------------------------------


class Policy(Protocol):
    """Who may do what; default deny."""

    @property
    def version(self) -> str:
        """Changes whenever the policies do; recorded with each decision."""

    def permits(self, principal: Principal, action: Action, workspace: str | None) -> bool: ...

    def may_ever(self, principal: Principal, action: Action) -> bool:
        """False only where `permits` is False for every workspace, and for None."""


# --- journal -----------------------------------------------------------------------------------


class Journal(Protocol):
    """The audit log's writer. Fail closed: where it cannot write, nothing is done."""

    @property
    def origin(self) -> str: ...

    async def append(self, *events: AuditEvent) -> Sequence[AuditReference]:
        """Durable (fdatasync) when it returns, in order; concurrent calls share one sync. Raises
        Unavailable (reason AUDIT_UNAVAILABLE), after which nothing was acknowledged.
        """

    def was_deleted(self, workspace: str, key_id: str) -> bool:
        """Whether the log holds this key's deletion: a restored database does not revive it."""

    async def close(self) -> None: ...
