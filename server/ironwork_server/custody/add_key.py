"""Adding a key: checked for syntax, with Anthropic, sealed, and saved once."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import assert_never

from ironwork_server.core.api_key import fingerprint, mask, parse_api_key, request_digest
from ironwork_server.core.envelope import Binding
from ironwork_server.core.errors import (
    AlreadyExists,
    InvalidRequest,
    IronworkError,
    LimitExceeded,
    PreconditionFailed,
    Unavailable,
)
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.names import key_name, new_key_id, parse_display_name, parse_request_id
from ironwork_server.core.ports import (
    AlreadyAnswered,
    KeyExists,
    KeyStore,
    KeyValidator,
    OrganizationDiffers,
    TooManyKeys,
)
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import (
    Action,
    KeyState,
    Phase,
    Replay,
    StoredKey,
    Validation,
    Verdict,
)
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.masked import MaskedKey, decode_answer, encode_answer, mask_row
from ironwork_server.custody.uninterrupted import uninterrupted
from ironwork_server.custody.vault import Vault

METHOD = Action.ADD_KEY.value
# Where Anthropic names no time itself.
VALIDATION_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class NewKey:
    """What AddKey was asked for, as it came. api_key is the caller's bytes, unchecked."""

    api_key: bytes
    display_name: str
    request_id: str
    allow_different_organization: bool

    def __repr__(self) -> str:
        return "NewKey(…)"


class KeyAdder:
    """The use case AddKey."""

    def __init__(
        self,
        *,
        store: KeyStore,
        vault: Vault,
        validator: KeyValidator,
        max_keys: int,
        meter: Meter = SILENT,
    ) -> None:
        self._store = store
        self._vault = vault
        self._validator = validator
        self._max_keys = max_keys
        self._meter = meter

    async def add(self, permit: Permit, new: NewKey) -> MaskedKey:
        """Errors: InvalidRequest, AlreadyExists, PreconditionFailed, LimitExceeded, Unavailable.

        Whatever fails, nothing was saved; the one exception is an answer lost on its way, which
        a repetition with the same request_id gives again.
        """
        permit.require(Action.ADD_KEY)
        display_name = parse_display_name(new.display_name)
        request_id = parse_request_id(new.request_id)
        with parse_api_key(new.api_key) as key, await self._vault.pepper(permit) as pepper:
            print_ = fingerprint(key, pepper)
            digest = request_digest(
                pepper,
                METHOD.encode(),
                permit.workspace.encode(),
                print_,
                display_name.encode(),
                b"\x01" if new.allow_different_organization else b"\x00",
            )
            # Only to spare Anthropic a call: what counts is the check inside the transaction. Read
            # before the kept answer, so that whoever finds the key of the request that it repeats
            # finds that request's answer, too.
            existing = await self._store.find(permit.workspace, print_)
            if request_id is not None:
                kept = await self._store.find_replay(permit.workspace, METHOD, request_id)
                if kept is not None:
                    return _replayed(permit, kept, digest)
            if existing is not None:
                raise _exists(permit.workspace, existing.key_id)
            validation = await self._validate(permit, key)
            row = await self._seal(permit, key, print_, display_name, validation)
        # To its end, although the caller may go: else the key could be kept, and the log deny it.
        return await uninterrupted(self._save(permit, row, request_id, digest, new))

    async def _validate(self, permit: Permit, key: Secret) -> Validation:
        validation = await self._validator.validate(key)
        self._meter.validated(validation.verdict)
        if validation.organization_id:
            permit.note(organization_id=validation.organization_id)
        refusal = _refusal(validation)
        if refusal is not None:
            raise refusal
        return validation

    async def _seal(
        self,
        permit: Permit,
        key: Secret,
        print_: bytes,
        display_name: str,
        validation: Validation,
    ) -> StoredKey:
        now = datetime.now(UTC)
        binding = Binding(
            workspace=permit.workspace,
            key_id=new_key_id(),
            sequence=await self._store.next_sequence(),
            created_at=now,
        )
        permit.note(key_id=binding.key_id, key_mask=mask(key))
        return StoredKey(
            workspace=binding.workspace,
            key_id=binding.key_id,
            sequence=binding.sequence,
            display_name=display_name,
            mask=mask(key),
            state=KeyState.ACTIVE,
            organization_id=validation.organization_id,
            created_at=now,
            created_by=permit.principal.spiffe_id,
            validated_at=now,
            fingerprint=print_,
            sealed=await self._vault.seal(permit, key, binding),
        )

    async def _save(
        self, permit: Permit, row: StoredKey, request_id: str | None, digest: bytes, new: NewKey
    ) -> MaskedKey:
        answer = mask_row(row, current=True)
        replay = None
        if request_id is not None:
            replay = Replay(
                workspace=row.workspace,
                method=METHOD,
                request_id=request_id,
                digest=digest,
                answer=encode_answer(answer),
                created_at=row.created_at,
            )
        try:
            previous = await self._insert(row, replay, new)
        except AlreadyAnswered as first:
            return _replayed(permit, first.replay, digest)
        except KeyExists as error:
            raise _exists(row.workspace, error.key_id) from None
        except TooManyKeys:
            raise LimitExceeded(
                f"The workspace holds {self._max_keys} keys already; delete some first.",
                reason="LIMIT_KEYS",
                metadata={"setting": "limits.max_keys", "value": str(self._max_keys)},
            ) from None
        except OrganizationDiffers as error:
            raise _different(row.organization_id, error.organizations) from None
        if previous:
            permit.after(
                permit.event(
                    Phase.EVENT,
                    "organization.changed",
                    success=True,
                    details={
                        "organization_id": row.organization_id,
                        "previous_organizations": ",".join(sorted(previous)),
                    },
                )
            )
        return answer

    async def _insert(self, row: StoredKey, replay: Replay | None, new: NewKey) -> frozenset[str]:
        """Insert under the strict rule first, so that a change of organisation is known as one.

        Returns the organisations that the workspace's keys have, or had last, where the new
        one differs.
        """
        try:
            await self._store.add(
                row, replay=replay, max_keys=self._max_keys, allow_different_organization=False
            )
        except OrganizationDiffers as error:
            if not new.allow_different_organization:
                raise
            await self._store.add(
                row, replay=replay, max_keys=self._max_keys, allow_different_organization=True
            )
            return error.organizations
        return frozenset()


def _replayed(permit: Permit, kept: Replay, digest: bytes) -> MaskedKey:
    if kept.digest != digest:
        raise InvalidRequest.field(
            "request_id",
            "was used before for another request; choose a new one",
            reason="REQUEST_ID_REUSED",
        )
    answer = decode_answer(kept.answer)
    if answer is None:
        raise TypeError("an AddKey answer always names a key")
    permit.note(key_id=answer.name.rpartition("/")[2], replayed=1)
    return answer


def _exists(workspace: str, key_id: str) -> AlreadyExists:
    return AlreadyExists(
        "The workspace has this key already.",
        reason="KEY_EXISTS",
        metadata={"name": key_name(workspace, key_id)},
    )


def _different(organization_id: str, organizations: frozenset[str]) -> PreconditionFailed:
    return PreconditionFailed(
        "The key belongs to another Anthropic organisation than the workspace's keys, or than"
        " the last one that it had."
        " If that is meant, set allow_different_organization.",
        reason="DIFFERENT_ORGANIZATION",
        metadata={
            "organization_id": organization_id,
            "workspace_organizations": ",".join(sorted(organizations)),
        },
    )


def _refusal(validation: Validation) -> IronworkError | None:
    match validation.verdict:
        case Verdict.VALID:
            return None
        case Verdict.INVALID:
            return InvalidRequest.field(
                "api_key",
                "Anthropic does not accept this key: it is mistyped, revoked or expired",
                reason="KEY_INVALID",
            )
        case Verdict.WITHOUT_PERMISSION:
            return InvalidRequest.field(
                "api_key",
                "Anthropic knows this key, but it may not use the Messages API; give it"
                " permission in the Anthropic console or use another",
                reason="KEY_WITHOUT_PERMISSION",
            )
        case Verdict.UNVERIFIABLE:
            return Unavailable(
                "Anthropic could not confirm the key now; nothing was saved. Try again.",
                reason="ANTHROPIC_UNAVAILABLE",
                metadata={"detail": validation.detail},
                retry_after_s=validation.retry_after_s or VALIDATION_RETRY_S,
            )
        case _:
            assert_never(validation.verdict)
