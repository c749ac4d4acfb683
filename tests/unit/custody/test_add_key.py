"""Adding keys."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_server.core.errors import (
    AlreadyExists,
    InvalidRequest,
    IronworkError,
    LimitExceeded,
    PermissionDenied,
    PreconditionFailed,
    Unavailable,
)
from ironwork_server.core.values import Action, Replay, StoredKey, Validation, Verdict
from ironwork_server.custody.add_key import METHOD, NewKey
from ironwork_server.custody.masked import MaskedKey, encode_answer

from .conftest import KEY, ORGANIZATION, OTHER_KEY, WORKSPACE, Custody

OTHER_ORGANIZATION = "b81f7b9e-52a4-4a0e-8f5d-0c9f4f6f2a77"


async def add(
    custody: Custody,
    key: bytes = KEY,
    *,
    name: str = "",
    request_id: str = "",
    allow_different_organization: bool = False,
) -> MaskedKey:
    """AddKey as the RPC layer calls it."""
    async with custody.admit(Action.ADD_KEY) as permit:
        return await custody.adder.add(
            permit, NewKey(key, name, request_id, allow_different_organization)
        )


async def test_a_key_is_sealed_and_current(custody: Custody) -> None:
    """What was added is masked, current, sealed, and stands nowhere in plaintext."""
    added = await add(custody, name="first")
    assert (added.mask, added.current, added.display_name) == ("sk-ant-api…AAzz", True, "first")
    assert added.organization_id == ORGANIZATION
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    assert row.name == added.name
    assert KEY[13:] not in row.sealed.ciphertext + row.sealed.wrapped.blob + row.fingerprint


@pytest.mark.parametrize(
    ("verdict", "error", "reason"),
    [
        (Verdict.INVALID, InvalidRequest, "KEY_INVALID"),
        (Verdict.WITHOUT_PERMISSION, InvalidRequest, "KEY_WITHOUT_PERMISSION"),
        (Verdict.UNVERIFIABLE, Unavailable, "ANTHROPIC_UNAVAILABLE"),
    ],
)
async def test_a_key_without_a_good_verdict_is_not_saved(
    custody: Custody, verdict: Verdict, error: type[IronworkError], reason: str
) -> None:
    """Each verdict but VALID is refused with its reason, and nothing is saved."""
    custody.anthropic.validation = Validation(verdict, detail="RATE_LIMITED")
    with pytest.raises(error) as refused:
        await add(custody)
    assert refused.value.reason == reason
    assert await custody.store.current(WORKSPACE) is None


async def test_an_unverifiable_key_says_when_to_try_again(custody: Custody) -> None:
    """Anthropic's own retry time is passed on; without one there is ours."""
    custody.anthropic.validation = Validation(Verdict.UNVERIFIABLE, retry_after_s=42)
    with pytest.raises(Unavailable) as refused:
        await add(custody)
    assert refused.value.retry_after_s == 42
    custody.anthropic.validation = Validation(Verdict.UNVERIFIABLE)
    with pytest.raises(Unavailable) as refused:
        await add(custody)
    assert refused.value.retry_after_s


async def test_a_malformed_key_costs_no_call_to_anthropic(custody: Custody) -> None:
    """Syntax is checked first; the error names the field and not the value."""
    with pytest.raises(InvalidRequest) as refused:
        await add(custody, b"sk-wrong-" + b"x" * 40)
    assert refused.value.violations[0].field == "api_key"
    assert "xxxx" not in str(refused.value)
    assert custody.anthropic.validated == 0


async def test_the_same_key_twice_is_refused_by_name(custody: Custody) -> None:
    """A duplicate is refused, naming the key that is there, without asking Anthropic again."""
    first = await add(custody)
    with pytest.raises(AlreadyExists) as refused:
        await add(custody)
    assert refused.value.metadata["name"] == first.name
    assert custody.anthropic.validated == 1


async def test_a_hundred_simultaneous_adds_of_one_key_leave_one_row(custody: Custody) -> None:
    """However many add the same key at once, it is there once, and one of them added it."""

    async def one() -> str:
        async with custody.admit(Action.ADD_KEY) as permit:
            try:
                await custody.adder.add(permit, NewKey(KEY, "", "", False))
            except AlreadyExists:
                return "exists"
            return "added"

    results = await asyncio.gather(*(one() for _ in range(100)))
    assert sorted(results) == ["added", *["exists"] * 99]
    assert len(await custody.store.page(WORKSPACE, before_sequence=None, limit=10)) == 1


async def test_a_request_id_gives_the_first_answer_again(custody: Custody) -> None:
    """A repeated request gets the first answer, and neither Anthropic nor the store is asked."""
    request_id = str(uuid.uuid4())
    first = await add(custody, request_id=request_id)
    assert await add(custody, request_id=request_id) == first
    assert custody.anthropic.validated == 1


async def test_simultaneous_repetitions_get_one_answer(custody: Custody) -> None:
    """Ten requests at once with one id add one key and all get its name."""
    request_id = str(uuid.uuid4())
    answers = await asyncio.gather(*(add(custody, request_id=request_id) for _ in range(10)))
    assert len({answer.name for answer in answers}) == 1


async def test_a_repetition_that_is_overtaken_gets_the_first_answer(custody: Custody) -> None:
    """A repetition during whose look-ups the first request is done is answered, not refused."""
    request_id = str(uuid.uuid4())
    find = custody.store.find
    answers: list[MaskedKey] = []

    async def overtaken(workspace: str, fingerprint: bytes) -> StoredKey | None:
        custody.store.find = find  # type: ignore[method-assign]
        answers.append(await add(custody, request_id=request_id))
        return await find(workspace, fingerprint)

    custody.store.find = overtaken  # type: ignore[method-assign]
    answers.append(await add(custody, request_id=request_id))
    assert answers[0] == answers[1]


async def test_a_request_id_is_not_reused_for_another_request(custody: Custody) -> None:
    """The same id with another key, or as a kept answer that is not ours, is refused."""
    request_id = str(uuid.uuid4())
    await add(custody, request_id=request_id)
    with pytest.raises(InvalidRequest) as refused:
        await add(custody, OTHER_KEY, request_id=request_id)
    assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_another_organisations_key_is_refused_unless_meant(custody: Custody) -> None:
    """A key of another organisation needs an explicit word, and is an audit event of its own."""
    await add(custody)
    custody.anthropic.validation = Validation(Verdict.VALID, OTHER_ORGANIZATION)
    with pytest.raises(PreconditionFailed) as refused:
        await add(custody, OTHER_KEY)
    assert refused.value.reason == "DIFFERENT_ORGANIZATION"
    assert refused.value.metadata["workspace_organizations"] == ORGANIZATION
    added = await add(custody, OTHER_KEY, allow_different_organization=True)
    assert added.organization_id == OTHER_ORGANIZATION
    changes = [e for e in custody.entries() if e.event.operation == "organization.changed"]
    assert [e.event.details["previous_organizations"] for e in changes] == [ORGANIZATION]


async def test_a_workspace_holds_a_bounded_number_of_keys(custody: Custody) -> None:
    """Beyond the limit an add is refused with the setting's name."""
    for number in range(5):
        await add(custody, KEY[:-1] + str(number).encode())
    with pytest.raises(LimitExceeded) as refused:
        await add(custody, OTHER_KEY)
    assert refused.value.metadata["setting"] == "limits.max_keys"


async def test_a_duplicate_found_only_in_the_transaction_is_refused(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check that counts is the one inside the store's transaction."""
    first = await add(custody)

    async def blind(workspace: str, fingerprint: bytes) -> None:
        return None

    monkeypatch.setattr(custody.store, "find", blind)
    with pytest.raises(AlreadyExists) as refused:
        await add(custody)
    assert refused.value.metadata["name"] == first.name


async def test_a_failing_hsm_saves_nothing(custody: Custody) -> None:
    """Where the data key cannot be wrapped, nothing is saved, and the answer is UNAVAILABLE."""
    custody.wrapper.fault = HsmUnavailable("gone")
    with pytest.raises(Unavailable) as failed:
        await add(custody)
    assert failed.value.reason == "MASTER_KEY_UNAVAILABLE"
    assert await custody.store.current(WORKSPACE) is None


async def test_adding_needs_a_permit_to_add(custody: Custody) -> None:
    """A Permit for another action adds nothing."""
    async with custody.admit(Action.LIST_MASKED) as permit:
        with pytest.raises(PermissionDenied):
            await custody.adder.add(permit, NewKey(KEY, "", "", False))


async def test_an_answer_that_names_no_key_is_no_answer_to_add(custody: Custody) -> None:
    """A kept answer of the wrong shape is never given as a success."""
    request_id = str(uuid.uuid4())
    await add(custody, request_id=request_id)
    kept = await custody.store.find_replay(WORKSPACE, METHOD, request_id)
    assert kept is not None

    async def odd(workspace: str, method: str, request_id: str) -> Replay:
        return Replay(
            workspace, method, request_id, kept.digest, encode_answer(None), kept.created_at
        )

    custody.store.find_replay = odd  # type: ignore[method-assign]
    with pytest.raises(TypeError):
        await add(custody, request_id=request_id)


def test_a_new_key_shows_nothing() -> None:
    """What AddKey was asked for has no repr that could be logged."""
    assert "sk-ant" not in repr(NewKey(KEY, "", "", False))


async def test_a_new_key_bears_the_time_of_its_sealing(custody: Custody) -> None:
    """Created and validated are one time, in UTC."""
    before = datetime.now(UTC)
    added = await add(custody)
    assert before <= added.created_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert added.created_at == added.validated_at


async def test_deleting_all_keys_first_does_not_hide_a_change_of_organisation(
    custody: Custody,
) -> None:
    """A workspace that was emptied keeps its organisation: a key of another is refused, and where
    it is said explicitly, the change is an event of its own.
    """
    added = await add(custody)
    async with custody.admit(Action.DELETE_KEY) as permit:
        await custody.deleter.delete(
            permit, added.name.rpartition("/")[2], cancel_in_flight=False, request_id=""
        )
    assert await custody.store.current(WORKSPACE) is None
    custody.anthropic.validation = Validation(Verdict.VALID, OTHER_ORGANIZATION)
    with pytest.raises(PreconditionFailed) as refused:
        await add(custody, OTHER_KEY)
    assert refused.value.reason == "DIFFERENT_ORGANIZATION"
    assert refused.value.metadata["workspace_organizations"] == ORGANIZATION
    await add(custody, OTHER_KEY, allow_different_organization=True)
    (changed,) = [e for e in custody.entries() if e.event.operation == "organization.changed"]
    assert ORGANIZATION in changed.text
    assert OTHER_ORGANIZATION in changed.text
