"""Using a key: which one a request carries, and what each unwrap needs and leaves."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from ironwork_hsm import BlobRejected, Busy, KeyMissing, PinRefused
from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_server.core.errors import (
    DataLoss,
    IronworkError,
    PermissionDenied,
    PreconditionFailed,
    Unavailable,
)
from ironwork_server.core.values import Action, Phase, StoredKey
from ironwork_server.custody.gate import MAX_RECORDS
from ironwork_server.custody.in_flight import CallScope
from ironwork_server.custody.use_key import Serving
from ironwork_server.custody.vault import Vault

from .conftest import KEY, OTHER_KEY, REQUEST, WORKSPACE, Custody, a_principal
from .test_add_key import add


async def nothing() -> AsyncIterator[bytes]:
    """An empty body."""
    return
    yield b""


async def use(custody: Custody, serving: Serving | None = None) -> int:
    """One Claude request; returns Anthropic's status."""
    scope = CallScope(asyncio.ensure_future(asyncio.sleep(0)))
    async with (
        custody.admit(Action.WITH_KEY, principal=a_principal("agent")) as permit,
        custody.user.send(
            permit, REQUEST, nothing(), serving=serving or Serving(), scope=scope
        ) as response,
    ):
        return response.status


async def test_a_request_carries_the_newest_key(custody: Custody) -> None:
    """Each request is sent with the key that is newest when it is sent."""
    await add(custody)
    await use(custody)
    await add(custody, OTHER_KEY)
    serving = Serving()
    await use(custody, serving)
    assert custody.anthropic.keys == [KEY, OTHER_KEY]
    assert serving.sent
    assert serving.key is not None
    assert serving.key.mask.endswith("AAyy")


async def test_without_a_key_a_request_is_refused(custody: Custody) -> None:
    """A workspace that has no key gets a reason and the mend."""
    with pytest.raises(PreconditionFailed) as refused:
        await use(custody)
    assert refused.value.reason == "NO_KEY"
    assert custody.anthropic.keys == []


async def test_a_stale_read_is_done_again(custody: Custody) -> None:
    """A key read over a second before its socket write is read again, and the new one is used."""
    await add(custody)
    second = await add(custody, OTHER_KEY)
    await custody.store.delete(WORKSPACE, second.name.rpartition("/")[2], replay=None)
    paused: list[None] = []

    def pause_once() -> None:
        if not paused:
            paused.append(None)
            custody.clock[0] += 1.001

    custody.anthropic.before_write = pause_once
    await use(custody)
    assert custody.anthropic.keys == [KEY]
    assert custody.wrapper.unwraps == 4  # two adds' peppers, the stale read, the fresh read


async def test_a_read_of_exactly_one_second_is_fresh(custody: Custody) -> None:
    """The bound itself is still fresh."""
    await add(custody)

    def pause() -> None:
        custody.clock[0] += 1.0

    custody.anthropic.before_write = pause
    await use(custody)
    assert custody.wrapper.unwraps == 2


async def test_an_answer_that_took_no_key_notes_no_use(custody: Custody) -> None:
    """Only a key that was sent counts as used."""
    await add(custody)
    custody.anthropic.asks_for_the_key = False
    serving = Serving()
    await use(custody, serving)
    assert serving.key is None
    assert not custody.uses._uses


async def test_using_needs_a_permit_to_use(custody: Custody) -> None:
    """A Permit for listing sends nothing and unwraps nothing."""
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    async with custody.admit(Action.LIST_MASKED) as permit:
        scope = CallScope(asyncio.ensure_future(asyncio.sleep(0)))
        with pytest.raises(PermissionDenied):
            async with custody.user.send(
                permit, REQUEST, nothing(), serving=Serving(), scope=scope
            ):
                pytest.fail("sent")
        with pytest.raises(PermissionDenied):
            await custody.vault.unwrap(permit, row)
        with pytest.raises(PermissionDenied):
            await custody.vault.pepper(permit)


async def test_a_row_of_another_workspace_does_not_open(custody: Custody) -> None:
    """A Permit opens keys of its own workspace only, whatever the store returned."""
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    async with custody.admit(Action.WITH_KEY) as permit:
        with pytest.raises(DataLoss):
            await custody.vault.unwrap(permit, replace(row, workspace="globex"))


async def test_a_row_of_another_format_does_not_open(custody: Custody) -> None:
    """A format that this version does not know is not guessed at."""
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    async with custody.admit(Action.WITH_KEY) as permit:
        with pytest.raises(DataLoss):
            await custody.vault.unwrap(permit, replace(row, sealed=replace(row.sealed, format=2)))


@pytest.mark.parametrize(
    "change",
    [
        {"key_id": "a b"},
        {"sealed": {"ciphertext": b"short"}},
        {"sealed": {"ciphertext": bytes(16)}},
        {"sealed": {"nonce": b""}},
        {"sealed": {"wrapped": {"mechanism": "no such mechanism"}}},
        {"sealed": {"wrapped": {"key_version": -1}}},
    ],
    ids=["id", "short", "empty", "nonce", "mechanism", "version"],
)
async def test_a_planted_row_is_refused_on_record(
    custody: Custody, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """A row that no AddKey made, whatever stands in it, is KEY_RECORD_DAMAGED, and the call has its
    outcome in the log: whoever writes to the database leaves no intent open.
    """
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None

    async def planted(workspace: str) -> StoredKey:
        return _changed(row, change)

    monkeypatch.setattr(custody.store, "current", planted)
    with pytest.raises(DataLoss) as refused:
        await use(custody)
    assert refused.value.reason == "KEY_RECORD_DAMAGED"
    assert custody.anthropic.keys == []
    outcome = custody.entries()[-1].event
    assert (outcome.operation, outcome.phase) == ("WithKey", "outcome")
    assert outcome.reason == "KEY_RECORD_DAMAGED"


def _changed(value: Any, change: dict[str, Any]) -> Any:
    """A copy of a dataclass, changed at any depth."""
    return replace(
        value,
        **{
            name: _changed(getattr(value, name), new) if isinstance(new, dict) else new
            for name, new in change.items()
        },
    )


async def test_a_data_key_without_its_record_is_wiped(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the HSM opened is overwritten where its outcome cannot be put on record any more."""
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    opened: list[bytearray] = []
    real = custody.wrapper.unwrap

    async def watched(*args: Any, **options: Any) -> bytearray:
        opened.append(await real(*args, **options))
        return opened[-1]

    monkeypatch.setattr(custody.wrapper, "unwrap", watched)
    async with custody.admit(Action.WITH_KEY) as permit:
        for _ in range(MAX_RECORDS):
            permit.after(permit.event(Phase.EVENT, "cache.use", success=True))
        with pytest.raises(Unavailable):
            await custody.vault.unwrap(permit, row)
    assert opened == [bytearray(32)]


async def test_a_record_of_an_unknown_backend_names_it(custody: Custody) -> None:
    """A row that no configured master key wrapped says which URI is missing."""
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    wrapped = replace(row.sealed.wrapped, backend="pkcs11:token=elsewhere;object=master")
    moved = replace(row, sealed=replace(row.sealed, wrapped=wrapped))
    async with custody.admit(Action.WITH_KEY) as permit:
        with pytest.raises(Unavailable) as refused:
            await custody.vault.unwrap(permit, moved)
    assert refused.value.reason == "MASTER_KEY_NOT_CONFIGURED"
    assert "elsewhere" in refused.value.metadata["backend"]


async def test_a_wrapper_in_front_of_others_opens_what_they_wrapped(custody: Custody) -> None:
    """A backend that fronts several master keys is asked for the rows of each of them, and the log
    names the one that a row is under.
    """
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    older = "pkcs11:token=older;object=master"
    custody.wrapper.names = frozenset({custody.wrapper.name, older})
    vault = Vault([custody.wrapper], custody.store)
    wrapped = replace(row.sealed.wrapped, backend=older)
    moved = replace(row, sealed=replace(row.sealed, wrapped=wrapped))
    async with custody.admit(Action.WITH_KEY) as permit:
        # SoftHSM has no such key, so its own answer comes back: it was asked.
        with pytest.raises(DataLoss):
            await vault.unwrap(permit, moved)
    asked = next(e for e in reversed(custody.entries()) if e.event.operation == "hsm.unwrap")
    assert asked.event.details["backend"] == older


@pytest.mark.parametrize(
    ("fault", "error", "reason", "healthy"),
    [
        (BlobRejected("x"), DataLoss, "KEY_RECORD_DAMAGED", True),
        (KeyMissing("x"), Unavailable, "MASTER_KEY_VERSION_MISSING", False),
        (PinRefused("x"), Unavailable, "MASTER_KEY_PIN_REFUSED", False),
        (HsmUnavailable("x"), Unavailable, "MASTER_KEY_UNAVAILABLE", False),
        (Busy("x"), Unavailable, "MASTER_KEY_BUSY", True),
    ],
)
async def test_each_fault_of_the_hsm_has_its_own_answer(
    custody: Custody, fault: Exception, error: type[IronworkError], reason: str, *, healthy: bool
) -> None:
    """HSM errors map to ours by type, are recorded by reason, and are told to health."""
    await add(custody)
    custody.wrapper.fault = fault  # type: ignore[assignment]
    with pytest.raises(error) as failed:
        await use(custody)
    assert failed.value.reason == reason
    outcome = next(e for e in reversed(custody.entries()) if e.event.operation == "hsm.unwrap")
    assert outcome.event.reason == reason
    assert custody.health[-1] is healthy


async def test_every_unwrap_is_on_record_before_it_happens(custody: Custody) -> None:
    """The log shows, in order: the request's intent, the unwrap's intent, and both outcomes."""
    await add(custody)
    before = len(custody.entries())
    await use(custody)
    new = [(e.event.operation, e.event.phase) for e in custody.entries()[before:]]
    assert new == [
        ("WithKey", "intent"),
        ("hsm.unwrap", "intent"),
        ("hsm.unwrap", "outcome"),
        ("WithKey", "outcome"),
    ]
    assert len({e.event.correlation_id for e in custody.entries()[before:]}) == 1


async def test_the_key_is_gone_from_the_injector_after_use(custody: Custody) -> None:
    """An injector works once: its data key is wiped by use, and by being discarded."""
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    async with custody.admit(Action.WITH_KEY) as permit:
        injector = await custody.user._prepare(permit, Serving(), lambda _: None)
        buffer = bytearray(injector.length)
        injector.inject(memoryview(buffer))
        assert bytes(buffer) == KEY
        with pytest.raises(DataLoss):
            injector.inject(memoryview(buffer))
        injector.discard()


async def test_one_pepper_serves_every_key_of_a_store(custody: Custody) -> None:
    """The pepper is made once, and is the same for another vault on the same store."""
    await add(custody)
    other = Vault([custody.wrapper], custody.store)
    async with custody.admit(Action.ADD_KEY) as permit:
        with await custody.vault.pepper(permit) as one, await other.pepper(permit) as two:
            assert bytes(one.reveal()) == bytes(two.reveal())
