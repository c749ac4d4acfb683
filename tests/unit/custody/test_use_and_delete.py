"""Using, listing and deleting keys."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ironwork_hsm import BlobRejected, Busy, KeyMissing, PinRefused
from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_server.core.errors import (
    DataLoss,
    InvalidRequest,
    IronworkError,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    Unavailable,
)
from ironwork_server.core.names import PageTokens
from ironwork_server.core.values import Action, KeyState
from ironwork_server.custody.delete_key import Deleted, KeyDeleter
from ironwork_server.custody.in_flight import CallScope, InFlight
from ironwork_server.custody.last_used import UseRecorder
from ironwork_server.custody.list_keys import KeyLister
from ironwork_server.custody.masked import MaskedKey, decode_answer, encode_answer, mask_row
from ironwork_server.custody.probe import MasterKeyProbe
from ironwork_server.custody.read_audit import AuditLister
from ironwork_server.custody.use_key import Serving
from ironwork_server.custody.vault import Vault
from ironwork_server.journal import EntryFilter
from ironwork_server.store import TraceRemains

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


async def delete(
    custody: Custody, key: MaskedKey, *, cancel: bool = False, request_id: str = ""
) -> Deleted:
    """DeleteKey as the RPC layer calls it."""
    key_id = key.name.rpartition("/")[2]
    async with custody.admit(Action.DELETE_KEY, key_id=key_id) as permit:
        return await custody.deleter.delete(
            permit, key_id, cancel_in_flight=cancel, request_id=request_id
        )


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


async def test_a_key_whose_deletion_is_on_record_stays_dead(custody: Custody) -> None:
    """A database restored from before a deletion does not bring the key back."""
    added = await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    await delete(custody, added)
    await custody.store.add(row, replay=None, max_keys=5, allow_different_organization=False)
    with pytest.raises(PreconditionFailed) as refused:
        await use(custody)
    assert refused.value.reason == "KEY_WAS_DELETED"


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


async def test_deletion_says_which_key_is_current_now(custody: Custody) -> None:
    """Deleting the newest brings back the one before; deleting the last leaves none."""
    first = await add(custody)
    second = await add(custody, OTHER_KEY)
    deleted = await delete(custody, second)
    assert deleted.current is not None
    assert deleted.current.name == first.name
    assert (await delete(custody, first)).current is None


async def test_an_unknown_key_is_not_found(custody: Custody) -> None:
    """Within one's own workspace, a missing key is said to be missing."""
    added = await add(custody)
    await delete(custody, added)
    with pytest.raises(NotFound):
        await delete(custody, added)


async def test_a_repeated_deletion_gives_the_first_answer(custody: Custody) -> None:
    """The same request_id replays; for another key it is refused."""
    first, second = await add(custody), await add(custody, OTHER_KEY)
    request_id = str(uuid.uuid4())
    answer = await delete(custody, second, request_id=request_id)
    assert await delete(custody, second, request_id=request_id) == answer
    with pytest.raises(InvalidRequest) as refused:
        await delete(custody, first, request_id=request_id)
    assert refused.value.reason == "REQUEST_ID_REUSED"
    last = await delete(custody, first, request_id=str(uuid.uuid4()))
    assert last.current is None


async def test_a_deletion_whose_trace_remains_has_taken_effect(custody: Custody) -> None:
    """Where only the erasing failed, the call fails, but the key is dead and stays so."""
    added = await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    real = custody.store.delete

    async def half(*arguments: object, **more: object) -> object:
        await real(*arguments, **more)  # type: ignore[arg-type]
        raise TraceRemains

    custody.store.delete = half  # type: ignore[method-assign,assignment]
    with pytest.raises(TraceRemains):
        await delete(custody, added)
    assert custody.journal.was_deleted(WORKSPACE, row.key_id)
    await custody.store.add(row, replay=None, max_keys=5, allow_different_organization=False)
    with pytest.raises(PreconditionFailed):
        await use(custody)


async def test_deletion_needs_no_hsm(custody: Custody) -> None:
    """A key can be deleted while the HSM is away, also with a request_id."""
    added = await add(custody)
    custody.wrapper.fault = HsmUnavailable("gone")
    await delete(custody, added, request_id=str(uuid.uuid4()))


async def test_deletion_ends_what_is_in_flight_if_asked(custody: Custody) -> None:
    """cancel_in_flight ends the requests that this key serves, with a reason, and no others."""
    added = await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    waiting = asyncio.ensure_future(asyncio.Event().wait())
    scope = CallScope(waiting)  # type: ignore[arg-type]
    with custody.in_flight.serving(scope) as register:
        register((WORKSPACE, row.key_id))
        assert (await delete(custody, added, cancel=True)).cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert scope.reason == "KEY_DELETED"
    assert len(custody.in_flight) == 0


async def test_deletion_returns_when_older_reads_have_expired(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeleteKey waits for the freshness bound, and a little more, after the row is gone; also where
    it finds none, since another call may be deleting it.
    """
    added = await add(custody)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        assert await custody.store.current(WORKSPACE) is None
        slept.append(seconds)

    deleter = KeyDeleter(store=custody.store, in_flight=custody.in_flight, freshness_s=1.0)
    monkeypatch.setattr("ironwork_server.custody.delete_key.asyncio.sleep", sleep)
    key_id = added.name.rpartition("/")[2]
    async with custody.admit(Action.DELETE_KEY) as permit:
        await deleter.delete(permit, key_id, cancel_in_flight=False, request_id="")
    assert slept == [1.05]
    with pytest.raises(NotFound):
        async with custody.admit(Action.DELETE_KEY) as permit:
            await deleter.delete(permit, key_id, cancel_in_flight=False, request_id="")
    assert slept == [1.05, 1.05]


async def test_a_call_is_registered_under_its_last_key_only() -> None:
    """A request that was prepared again moves from its first key to its second."""
    registry = InFlight()
    done = asyncio.ensure_future(asyncio.sleep(0))
    other = CallScope(asyncio.ensure_future(asyncio.Event().wait()))  # type: ignore[arg-type]
    scope = CallScope(done)
    with registry.serving(scope) as register, registry.serving(other) as register_other:
        register(("acme", "a"))
        register_other(("acme", "a"))
        register(("acme", "b"))
        assert len(registry) == 2
        assert registry.end(("acme", "nobody"), "KEY_DELETED") == 0
        await done
        assert registry.end(("acme", "b"), "KEY_DELETED") == 1
        assert scope.reason is None, "a call that is over is not ended again"
        other.end("FIRST")
        other.end("SECOND")
        assert other.reason == "FIRST"
    assert len(registry) == 0


async def test_listing_pages_newest_first(custody: Custody) -> None:
    """Pages follow each other without gaps, and one key is current."""
    names = [(await add(custody, KEY[:-1] + str(n).encode())).name for n in range(5)]
    lister = KeyLister(store=custody.store, tokens=PageTokens(b"s" * 32))
    listed: list[MaskedKey] = []
    token = ""
    async with custody.admit(Action.LIST_MASKED) as permit:
        while True:
            page = await lister.list(permit, size=2, token=token)
            listed += page.keys
            token = page.next_page_token
            if not token:
                break
    assert [key.name for key in listed] == names[::-1]
    assert [key.current for key in listed] == [True, False, False, False, False]


async def test_listing_an_empty_workspace_gives_nothing(custody: Custody) -> None:
    """No keys, no token."""
    lister = KeyLister(store=custody.store, tokens=PageTokens(b"s" * 32))
    async with custody.admit(Action.LIST_MASKED) as permit:
        page = await lister.list(permit, size=0, token="")
    assert (list(page.keys), page.next_page_token) == ([], "")


async def test_the_log_is_listed_in_pages(custody: Custody) -> None:
    """An auditor's pages hold every entry once, in order."""
    await add(custody)
    lister = AuditLister(reader=custody.journal.reader(), origin="o", tokens=PageTokens(b"s" * 32))
    seen: list[int] = []
    token = ""
    async with custody.admit(Action.READ_AUDIT) as permit:
        while True:
            page = await lister.list(permit, EntryFilter(), size=3, token=token)
            seen += [index for index, _ in page.entries]
            token = page.next_page_token
            if not token:
                break
    assert seen == list(range(len(seen)))


async def test_a_use_is_noted_and_written(custody: Custody) -> None:
    """Last use, and Anthropic's 401, are in the store after the next flush."""
    await add(custody)
    custody.anthropic.status = 401
    await use(custody)
    await custody.uses.flush()
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    assert row.last_used_at is not None
    assert row.state is KeyState.REJECTED_BY_ANTHROPIC
    await use(custody)
    await custody.uses.flush()


async def test_notes_of_uses_are_bounded(custody: Custody, monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys than the bound are not noted; those that are there go on being."""
    monkeypatch.setattr("ironwork_server.custody.last_used.MAX_NOTED", 1)
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    recorder = UseRecorder(custody.store)
    recorder.note(row, rejected=False)
    recorder.note(replace(row, key_id="another"), rejected=True)
    recorder.note(row, rejected=False)
    assert len(recorder._uses) == 1
    assert not recorder._rejected


async def test_uses_that_cannot_be_written_are_said_and_forgotten(
    custody: Custody, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing store costs the note of a use, never a call; an idle flush writes nothing."""
    await custody.uses.flush()
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None

    async def fail(uses: object) -> None:
        raise Unavailable("x", reason="STORE_UNAVAILABLE")

    custody.store.record_uses = fail  # type: ignore[method-assign]
    custody.uses.note(row, rejected=False)
    await custody.uses.flush()
    assert "uses.not_written" in caplog.messages


async def test_uses_are_written_at_intervals(custody: Custody) -> None:
    """The recorder flushes until it is cancelled."""
    recorder = UseRecorder(custody.store, interval_s=0.001)
    flushed = asyncio.Event()

    async def flush() -> None:
        flushed.set()

    recorder.flush = flush  # type: ignore[method-assign]
    running = asyncio.create_task(recorder.run())
    await flushed.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_probe_is_on_record(custody: Custody) -> None:
    """A probe of the master key has an intent and an outcome, good or bad."""
    probe = MasterKeyProbe([custody.wrapper], custody.journal)
    await probe.check()
    custody.wrapper.fault = HsmUnavailable("gone")
    with pytest.raises(Unavailable):
        await probe.check()
    shown = [(e.event.operation, e.event.phase, e.event.success) for e in custody.entries()]
    assert shown == [
        ("hsm.probe", "intent", None),
        ("hsm.probe", "outcome", True),
        ("hsm.probe", "intent", None),
        ("hsm.probe", "outcome", False),
    ]


async def test_an_answer_survives_being_kept(custody: Custody) -> None:
    """Every field of a masked key comes back from its kept form."""
    await add(custody, name="é")
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    used = replace(row, last_used_at=datetime(2026, 1, 1, tzinfo=UTC))
    for key in (mask_row(row, current=True), mask_row(used, current=False)):
        assert decode_answer(encode_answer(key)) == key
    assert decode_answer(encode_answer(None)) is None


async def test_one_pepper_serves_every_key_of_a_store(custody: Custody) -> None:
    """The pepper is made once, and is the same for another vault on the same store."""
    await add(custody)
    other = Vault([custody.wrapper], custody.store)
    async with custody.admit(Action.ADD_KEY) as permit:
        with await custody.vault.pepper(permit) as one, await other.pepper(permit) as two:
            assert bytes(one.reveal()) == bytes(two.reveal())
