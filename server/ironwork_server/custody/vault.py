"""Sealing and opening keys: the envelope around ironwork_hsm, each HSM operation on record.

Every operation takes a Permit, writes its own intent before the HSM is asked and its own outcome
after, and maps ironwork_hsm's errors to the service's, here and nowhere else.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from time import perf_counter

from ironwork_audit import fits
from ironwork_hsm import (
    BlobRejected,
    Busy,
    HsmError,
    KeyMissing,
    KeyWrapper,
    PinRefused,
    WrappedKey,
)
from ironwork_server.core.envelope import (
    FORMAT,
    Binding,
    new_data_key,
    pepper_context,
    seal,
    wipe,
    wrap_context,
)
from ironwork_server.core.errors import DataLoss, IronworkError, Unavailable
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.names import is_key_name
from ironwork_server.core.ports import KeyStore
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import (
    Action,
    AuditReference,
    BreakGlassCopy,
    Phase,
    SealedKey,
    StoredKey,
)
from ironwork_server.custody.break_glass import Recipient
from ironwork_server.custody.data_key_cache import DataKeyCache
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.uninterrupted import checkpoint
from ironwork_server.custody.versions import by_name, follow

HSM_RETRY_S = 5.0
BUSY_RETRY_S = 1.0
# AES-GCM's tag, which the stored ciphertext holds and the key does not.
TAG_BYTES = 16


class Vault:
    """The first wrapper wraps; all unwrap, each what it wrapped."""

    def __init__(
        self,
        wrappers: Sequence[KeyWrapper],
        store: KeyStore,
        *,
        on_health: Callable[[bool], None] = lambda healthy: None,
        meter: Meter = SILENT,
        recipient: Recipient | None = None,
        cache: DataKeyCache | None = None,
    ) -> None:
        """recipient: whom a copy of each data key is sealed for as well (break-glass). cache: keeps
        data keys between uses; None, the default, unwraps for each.
        """
        self._recipient = recipient
        self._cache = cache
        self._wrapping = wrappers[0]
        self._by_name = by_name(wrappers)
        self._store = store
        self._on_health = on_health
        self._meter = meter

    async def seal(self, permit: Permit, key: Secret, binding: Binding) -> SealedKey:
        """Seal a key under a data key of its own, and wrap that. Errors: Unavailable."""
        permit.require(Action.ADD_KEY)
        data_key = new_data_key()
        try:
            nonce, ciphertext = seal(key, data_key, binding)
            context = wrap_context(binding)
            wrapped = await self._wrap(permit, data_key, context, binding.key_id)
            copy = self._copy(permit, data_key, context, binding.key_id)
        finally:
            wipe(data_key)
        return SealedKey(FORMAT, nonce, ciphertext, wrapped, copy)

    async def unwrap(self, permit: Permit, row: StoredKey) -> bytearray:
        """A row's data key, for one use; the caller wipes it. Errors: DataLoss, Unavailable."""
        permit.require(Action.WITH_KEY)
        check_row(permit, row)
        binding, wrapped = binding_of(row), row.sealed.wrapped

        async def ask() -> tuple[bytearray, AuditReference]:
            return await self._unwrap(permit, wrapped, wrap_context(binding), row.key_id)

        if self._cache is None:
            data_key, _ = await ask()
            return data_key
        return await self._cache.take(permit, binding, wrapped, ask)

    def forget(self, workspace: str, key_id: str) -> None:
        """The key was deleted: nothing of it is kept."""
        if self._cache is not None:
            self._cache.forget(workspace, key_id)

    async def pepper(self, permit: Permit) -> Secret:
        """The fingerprint pepper, which the first AddKey makes; the caller wipes it. WithKey asks
        for it only where an answer holds what may be the key. Errors: DataLoss, Unavailable.
        """
        permit.require(Action.ADD_KEY, Action.WITH_KEY)
        kept = await self._store.pepper()
        if kept is None:
            # There is a key, so there was a pepper: a new one would fit no fingerprint.
            if permit.action is not Action.ADD_KEY:
                raise damaged()
            kept = await self._create_pepper(permit)
        pepper, _ = await self._unwrap(permit, kept, pepper_context(), key_id="")
        try:
            return Secret(pepper)
        finally:
            wipe(pepper)

    async def _create_pepper(self, permit: Permit) -> WrappedKey:
        fresh = new_data_key()
        try:
            wrapped = await self._wrap(permit, fresh, pepper_context(), key_id="")
            copy = self._copy(permit, fresh, pepper_context(), key_id="")
        finally:
            wipe(fresh)
        return await self._store.create_pepper(wrapped, copy)

    def _copy(
        self, permit: Permit, data_key: bytearray, context: bytes, key_id: str
    ) -> BreakGlassCopy | None:
        """A copy for the recipient, on record; the HSM has no part in it."""
        if self._recipient is None:
            return None
        details: dict[str, str | int] = {
            "recipient": self._recipient.id,
            "purpose": _purpose(key_id),
        }
        permit.after(
            permit.event(
                Phase.EVENT, "break_glass.copy", success=True, key_id=key_id, details=details
            )
        )
        return self._recipient.seal(data_key, context)

    async def _wrap(
        self, permit: Permit, data_key: bytearray, context: bytes, key_id: str
    ) -> WrappedKey:
        wrapper = self._wrapping
        try:
            wraps = await follow(wrapper, self._store)
        except HsmError as error:
            raise map_hsm_error(error) from None
        async with self._recorded(
            permit, "hsm.wrap", key_id, purpose=_purpose(key_id), **wraps.details
        ):
            return await wrapper.wrap(
                data_key, context, version=wraps.version, reference=permit.correlation_id
            )

    async def _unwrap(
        self, permit: Permit, wrapped: WrappedKey, context: bytes, key_id: str
    ) -> tuple[bytearray, AuditReference]:
        """What was wrapped, for the caller to wipe, and the intent that stands for it."""
        wrapper = self._by_name.get(wrapped.backend)
        if wrapper is None:
            raise Unavailable(
                "No configured master key opens this record; list its backend's URI in"
                " master_key.uris.",
                reason="MASTER_KEY_NOT_CONFIGURED",
                metadata={"backend": wrapped.backend},
            )
        opened = bytearray()
        try:
            async with self._recorded(
                permit,
                "hsm.unwrap",
                key_id,
                purpose=_purpose(key_id),
                backend=wrapped.backend,
                master_key_version=wrapped.key_version,
                mechanism=wrapped.mechanism,
            ) as intent:
                opened = await wrapper.unwrap(wrapped, context, reference=permit.correlation_id)
        except BaseException:
            # Also what was opened and could not be put on record.
            wipe(opened)
            raise
        return opened, intent

    @asynccontextmanager
    async def _recorded(
        self, permit: Permit, operation: str, key_id: str, **details: str | int
    ) -> AsyncIterator[AuditReference]:
        intent = await permit.before(
            permit.event(Phase.INTENT, operation, key_id=key_id, details=details)
        )
        success, reason, began = False, "INTERRUPTED", perf_counter()
        try:
            await checkpoint()
            yield intent
            success, reason = True, ""
            self._on_health(True)
        except HsmError as error:
            mapped = map_hsm_error(error)
            reason = mapped.reason
            # A device that says that we ask for too much is a sound one.
            healthy = isinstance(error, Busy) or not isinstance(mapped, Unavailable)
            self._on_health(healthy)
            if not healthy and self._cache is not None:
                # Who takes the HSM away means to end the keys' use.
                self._cache.clear()
            raise mapped from None
        finally:
            self._meter.hsm(
                str(details["backend"]), operation, reason or "ok", perf_counter() - began
            )
            permit.after(
                permit.event(
                    Phase.OUTCOME,
                    operation,
                    success=success,
                    reason=reason,
                    intent_index=intent.index,
                    key_id=key_id,
                    details=details,
                )
            )


def check_row(permit: Permit, row: StoredKey) -> None:
    """Raises DataLoss for a row that is not this workspace's, or not as any AddKey made it: nothing
    of it is put on record, since the log would refuse it, and the call's outcome with it.
    """
    wrapped = row.sealed.wrapped
    whole = (
        row.workspace == permit.workspace
        and row.sealed.format == FORMAT
        and key_length(row) > 0
        and is_key_name(row.name)
        and fits("mechanism", wrapped.mechanism)
        and fits("master_key_version", wrapped.key_version)
    )
    if not whole:
        raise damaged()


def binding_of(row: StoredKey) -> Binding:
    """What a row's ciphertext is bound to."""
    return Binding(
        workspace=row.workspace,
        key_id=row.key_id,
        sequence=row.sequence,
        created_at=row.created_at.astimezone(UTC),
    )


def key_length(row: StoredKey) -> int:
    """Length of the row's key in bytes."""
    return len(row.sealed.ciphertext) - TAG_BYTES


def _purpose(key_id: str) -> str:
    """What is wrapped: a key's data key, or the pepper, which belongs to no key."""
    return "data-key" if key_id else "pepper"


def damaged() -> DataLoss:
    """What there is to say of a record that is not as it was written."""
    return DataLoss(
        "The stored key does not open: its record was altered, moved or damaged. Add the key"
        " again and delete this one.",
        reason="KEY_RECORD_DAMAGED",
    )


def map_hsm_error(error: HsmError) -> IronworkError:
    """ironwork_hsm's errors as the service's: the one place that does this."""
    if isinstance(error, BlobRejected):
        return damaged()
    if isinstance(error, KeyMissing):
        return Unavailable(
            "The master-key version that wraps this record is not in the HSM.",
            reason="MASTER_KEY_VERSION_MISSING",
        )
    if isinstance(error, PinRefused):
        return Unavailable("The HSM refused the PIN.", reason="MASTER_KEY_PIN_REFUSED")
    if isinstance(error, Busy):
        return Unavailable(
            "The HSM is asked for more than it may do at once; try again.",
            reason="MASTER_KEY_BUSY",
            retry_after_s=BUSY_RETRY_S,
        )
    return Unavailable(
        "The HSM does not answer.", reason="MASTER_KEY_UNAVAILABLE", retry_after_s=HSM_RETRY_S
    )
