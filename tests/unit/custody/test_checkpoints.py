"""Publishing the audit log: when a checkpoint is signed, and what holds while it cannot be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from fixtures.journal_events import entries, made, operations
from fixtures.log_check import check_checkpoint
from fixtures.migrated import NewStore
from fixtures.signing import MakeSigningKey, SigningKeyFiles
from ironwork_audit import publishing
from ironwork_audit.tlog import Checkpoint, Signature, format_note, parse_note
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_hsm import HsmError, KeyMissing, PinRefused, Signer
from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_hsm.interface import SignatureAlgorithm
from ironwork_hsm.signers import open_signer
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.values import AuditReference
from ironwork_server.custody import checkpoints
from ironwork_server.custody.checkpoints import Checkpointer
from ironwork_server.journal import FileJournal
from ironwork_server.store import Store, open_store

ORIGIN = "ironwork.test/checkpoints"


class SickSigner:
    """A real signer, before which an error may be put. wrong: signs something else."""

    def __init__(self, real: Signer) -> None:
        self._real = real
        self.fault: Exception | None = None
        self.wrong = False
        self.hold = asyncio.Event()
        self.hold.set()
        self.signatures = 0
        # Attempts to open the device anew, and what they come to.
        self.recoveries = 0
        self.lost: Exception | None = None

    async def recover(self) -> None:
        self.recoveries += 1
        if self.lost is not None:
            raise self.lost

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    async def sign(self, message: bytes, *, reference: str = "") -> bytes:
        await self.hold.wait()
        if self.fault is not None:
            raise self.fault
        self.signatures += 1
        return await self._real.sign(message + b"!" * self.wrong, reference=reference)


class Running:
    """A journal, its signer and a checkpointer whose clock the test holds."""

    def __init__(
        self, folder: Path, journal: FileJournal, signer: SickSigner, store: Store
    ) -> None:
        self.store = store
        self.folder = folder
        self.journal = journal
        self.signer = signer
        self.now = 0.0
        self.notes: list[bytes] = []
        self.checkpointer = Checkpointer(
            journal,
            signer,  # type: ignore[arg-type]  # it passes the rest on
            store,
            on_checkpoint=self.notes.append,
            clock=lambda: self.now,
        )

    async def append(self) -> AuditReference:
        return (await self.journal.append(made(0)))[0]

    @property
    def size(self) -> int:
        """Of the published checkpoint; 0 before the first."""
        note = self.journal.checkpoint()
        return 0 if note is None else Checkpoint.parse(parse_note(note).text).size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
async def store(tmp_path: Path, new_store: NewStore) -> AsyncIterator[Store]:
    store = open_store(new_store(tmp_path / "keys.db"))
    yield store
    await store.close()


@pytest.fixture
async def running(
    folder: Path, signing_key: SigningKeyFiles, store: Store
) -> AsyncIterator[Running]:
    signer = await open_signer(signing_key.uri)
    journal = FileJournal.open(folder, ORIGIN)
    running = Running(folder, journal, SickSigner(signer), store)
    yield running
    await journal.close()
    await signer.close()


@pytest.fixture
async def task(running: Running) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(running.checkpointer.run())
    yield task
    running.checkpointer.stop()
    async with asyncio.timeout(30):
        await task


async def test_an_entry_is_published(running: Running, task: asyncio.Task[None]) -> None:
    """A checkpoint covers the entry, is signed by the log's key, and its signing is on record."""
    reference = await running.append()
    await running.checkpointer.published(reference)
    opened = open_checkpoint(running.notes[-1], running.checkpointer.key)
    assert (opened.checkpoint.origin, opened.checkpoint.size) == (ORIGIN, 1)
    assert operations(running.folder) == ["AddKey", "hsm.sign", "hsm.sign"]
    intent, outcome = [entry.event for entry in entries(running.folder)[1:]]
    assert intent.correlation_id == outcome.correlation_id
    assert (outcome.success, outcome.intent_index) == (True, 1)
    assert outcome.details["purpose"] == "checkpoint"
    assert check_checkpoint(running.folder, ORIGIN) == 1
    await running.checkpointer.published(reference)  # at once: it is published already


async def test_an_idle_log_does_not_grow(
    running: Running, task: asyncio.Task[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint's own entries never cause another."""
    await running.checkpointer.published(await running.append())
    looks = 0
    look = running.checkpointer._look

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await look()

    monkeypatch.setattr(running.checkpointer, "_look", counted)
    monkeypatch.setattr(checkpoints, "INTERVAL_S", 0.001)
    running.checkpointer._wanted.set()
    async with asyncio.timeout(30):
        while looks < 20:  # noqa: ASYNC110 - the loop tells nobody that it looked
            await asyncio.sleep(0.001)
    assert len(entries(running.folder)) == 3
    assert running.signer.signatures == 1
    await running.checkpointer.published(await running.append())
    assert running.size == 4


async def test_an_entry_is_published_although_nobody_asks(
    running: Running, task: asyncio.Task[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries are looked for twice a second."""
    assert checkpoints.INTERVAL_S <= 0.5
    await running.append()
    async with asyncio.timeout(30):
        while not running.notes:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.01)


async def test_those_who_wait_share_one(running: Running, task: asyncio.Task[None]) -> None:
    """However many admin calls wait, few signatures are made."""
    references = [await running.append() for _ in range(20)]
    waiting = [running.checkpointer.published(reference) for reference in references]
    await asyncio.gather(*waiting)
    assert running.signer.signatures <= 2


async def test_who_comes_during_a_signature_waits_for_the_next(
    running: Running, task: asyncio.Task[None]
) -> None:
    """An entry that is not under the checkpoint being signed gets one of its own, at once."""
    running.signer.hold.clear()
    first = asyncio.create_task(running.checkpointer.published(await running.append()))
    while len(entries(running.folder)) < 2:  # noqa: ASYNC110 - until the intent is there
        await asyncio.sleep(0.001)
    late = asyncio.create_task(running.checkpointer.published(await running.append()))
    await asyncio.sleep(0)
    running.signer.hold.set()
    await asyncio.gather(first, late)
    assert running.signer.signatures == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (HsmUnavailable("away"), "AUDIT_KEY_UNAVAILABLE"),
        (LookupError("a mistake"), ""),
        (None, ""),
    ],
    ids=["device", "our mistake", "wrong signature"],
)
async def test_a_sick_signer(
    running: Running, task: asyncio.Task[None], fault: HsmError | None, reason: str
) -> None:
    """Entries are durable all the same, admin calls are refused, health says so after its bound;
    when the signer is well all of it ends by itself.
    """
    checkpointer, signer = running.checkpointer, running.signer
    signer.fault, signer.wrong = fault, fault is None
    reference = await running.append()
    with pytest.raises(Unavailable) as refused:
        await checkpointer.published(reference)
    assert refused.value.reason == "CHECKPOINT_UNAVAILABLE"
    with pytest.raises(Unavailable):
        checkpointer.require()
    await checkpointer.check()
    before = len(entries(running.folder))
    with pytest.raises(Unavailable):  # at once, without another attempt
        await checkpointer.published(await running.append())
    assert len(entries(running.folder)) == before + 1
    running.now += publishing.LATE_S + 0.1
    with pytest.raises(Unavailable):
        await checkpointer.check()
    assert running.size == 0
    signer.fault, signer.wrong = None, False
    running.now += max(publishing.RETRY_S)
    await checkpointer.published(reference)
    checkpointer.require()
    await checkpointer.check()
    outcome = next(e.event for e in entries(running.folder) if e.event.phase == "outcome")
    if reason:
        assert (outcome.success, outcome.reason) == (False, reason)


async def attempt(running: Running) -> None:
    """One, whatever failed before."""
    running.now += max(publishing.RETRY_S)
    await running.checkpointer._look()


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (HsmUnavailable("away"), "AUDIT_KEY_UNAVAILABLE"),
        (PinRefused("no"), "AUDIT_KEY_PIN_REFUSED"),
        (KeyMissing("gone"), "AUDIT_KEY_MISSING"),
    ],
)
async def test_a_sick_signer_is_opened_anew(running: Running, lost: HsmError, reason: str) -> None:
    """What fails twice is opened anew before it is asked again, on record; while that fails nothing
    is signed, and health says why; once it works the checkpoint follows.
    """
    signer = running.signer
    signer.fault = signer.lost = lost
    await running.append()
    await attempt(running)
    await attempt(running)
    assert signer.recoveries == 0
    await attempt(running)
    await attempt(running)
    assert signer.recoveries == 2
    assert operations(running.folder) == ["AddKey", *["hsm.sign"] * 4, *["hsm.open"] * 4]
    assert {e.event.reason for e in entries(running.folder) if e.event.phase == "outcome"} == {
        reason
    }
    with pytest.raises(Unavailable) as said:
        await running.checkpointer.check()
    assert said.value.reason == reason
    signer.fault = signer.lost = None
    await attempt(running)
    assert running.size == 11
    assert entries(running.folder)[10].event.success is True
    await running.checkpointer.check()
    await running.append()
    await attempt(running)
    assert signer.recoveries == 3


async def test_a_signer_that_others_bring_back_is_only_asked(running: Running) -> None:
    """Behind the HSM process or in a cloud there is nothing to open from here."""

    class Remote:
        def __init__(self, real: SickSigner) -> None:
            self.name, self.algorithm = real.name, real.algorithm  # type: ignore[attr-defined]
            self.public_key, self.sign = real.public_key, real.sign  # type: ignore[attr-defined]

    running.checkpointer._signer = Remote(running.signer)  # type: ignore[assignment]
    running.signer.fault = HsmUnavailable("away")
    await running.append()
    for _ in range(4):
        await attempt(running)
    assert operations(running.folder) == ["AddKey", *["hsm.sign"] * 8]
    running.signer.fault = None
    await attempt(running)
    assert running.size == 9


async def test_a_signer_that_hangs(
    running: Running, task: asyncio.Task[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits is answered within a bound, and the operation has an outcome."""
    monkeypatch.setattr(checkpoints, "PUBLISH_DEADLINE_S", 0.05)
    monkeypatch.setattr(checkpoints, "ATTEMPT_DEADLINE_S", 0.2)
    running.signer.hold.clear()
    with pytest.raises(Unavailable):
        await running.checkpointer.published(await running.append())
    async with asyncio.timeout(30):
        while len(entries(running.folder)) < 3:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)
    assert entries(running.folder)[2].event.reason == "INTERRUPTED"
    running.signer.hold.set()


async def test_a_busy_log_is_never_late_while_it_is_published(
    running: Running, task: asyncio.Task[None]
) -> None:
    """What counts is how long an entry waits, not that there is always one that does."""
    for _ in range(5):
        await running.checkpointer.published(await running.append())
        running.now += publishing.LATE_S * 0.6
        await running.append()
        await running.checkpointer.check()


async def test_the_last_entries_are_published_at_the_end(running: Running) -> None:
    """A stop publishes what has come since, also right after a failure."""
    task = asyncio.create_task(running.checkpointer.run())
    running.signer.fault = HsmUnavailable("away")
    with suppress(Unavailable):
        await running.checkpointer.published(await running.append())
    running.signer.fault = None
    running.checkpointer.stop()
    async with asyncio.timeout(30):
        await task
    assert running.size == 3


async def test_a_restart_goes_on_from_the_checkpoint(
    running: Running, task: asyncio.Task[None], make_signing_key: MakeSigningKey
) -> None:
    """A new start takes up the published checkpoint; one signed by another key is refused."""
    await running.checkpointer.published(await running.append())
    again = Running(running.folder, running.journal, running.signer, running.store)
    await again.checkpointer.resume()
    await again.checkpointer.published(AuditReference(ORIGIN, 0))
    other = await open_signer(make_signing_key(SignatureAlgorithm.ECDSA_P256).uri)
    stranger = Running(running.folder, running.journal, SickSigner(other), running.store)
    with pytest.raises(Unavailable) as refused:
        await stranger.checkpointer.resume()
    assert refused.value.reason == "AUDIT_KEY_DIFFERS"
    await other.close()


async def test_ecdsa_where_there_is_no_ed25519(
    folder: Path, store: Store, make_signing_key: MakeSigningKey
) -> None:
    """A P-256 key signs checkpoints that its verifier key checks."""
    signer = await open_signer(make_signing_key(SignatureAlgorithm.ECDSA_P256).uri)
    journal = FileJournal.open(folder, ORIGIN)
    running = Running(folder, journal, SickSigner(signer), store)
    await running.checkpointer.resume()
    task = asyncio.create_task(running.checkpointer.run())
    await running.checkpointer.published(await running.append())
    assert open_checkpoint(running.notes[0], running.checkpointer.key).checkpoint.size == 1
    running.checkpointer.stop()
    await task
    await journal.close()
    await signer.close()


@pytest.mark.parametrize("how", ["_refuse", "_settle"])
async def test_a_waiter_that_has_gone(running: Running, how: str) -> None:
    """Whoever was cancelled while it waited is passed over."""
    waiting = asyncio.create_task(running.checkpointer.published(await running.append()))
    await asyncio.sleep(0)
    waiting.cancel()
    getattr(running.checkpointer, how)()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_cosigned_checkpoint_takes_the_place_of_the_same(
    running: Running, task: asyncio.Task[None]
) -> None:
    """What witnesses signed is published, but never over a newer checkpoint."""
    await running.checkpointer.published(await running.append())
    note = running.notes[-1]
    more = parse_note(note)
    line = Signature("witness.test/w", b"wkey", b"t" * 72)
    with_witness = format_note(more.text, [*more.signatures, line])
    await running.checkpointer.cosigned(with_witness)
    assert running.journal.checkpoint() == with_witness
    await running.checkpointer.published(await running.append())
    await running.checkpointer.cosigned(with_witness)
    assert running.journal.checkpoint() == running.notes[-1] != note
