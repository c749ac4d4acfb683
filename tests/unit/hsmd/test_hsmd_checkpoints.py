"""The HSM process' record, signed: when, by whom, and what holds while it cannot be."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fixtures.hsmd import entries_of
from fixtures.signing import MakeSigningKey, SigningKeyFiles
from ironwork_audit import INTENT, Event, publishing
from ironwork_audit.cli.main import main as audit
from ironwork_hsm import ConfigurationError, HsmError, Signer, Unavailable
from ironwork_hsm.daemon import checkpoints as checkpoints_module
from ironwork_hsm.daemon.checkpoints import RecordCheckpoints, Standing
from ironwork_hsm.daemon.head import Head, HeadFile
from ironwork_hsm.daemon.record import LogRecord, open_record
from ironwork_hsm.signers import open_signer

ORIGIN = "hsm.acme.example/one"


class SickSigner:
    """A real signer, which fails or signs something else as told."""

    def __init__(self, real: Signer) -> None:
        self.real = real
        self.fault: HsmError | None = None
        self.wrong = False
        self.closed = False
        self.signatures = 0

    @property
    def public_key(self) -> bytes:
        if self.closed:
            raise Unavailable("not open")
        return self.real.public_key

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    async def sign(self, message: bytes, *, reference: str = "") -> bytes:
        if self.fault is not None:
            raise self.fault
        self.signatures += 1
        return await self.real.sign(message + b"!" * self.wrong, reference=reference)


class Bench:
    """A record, its signer and checkpoints whose clock the test holds."""

    def __init__(self, place: Path, record: LogRecord, signer: SickSigner) -> None:
        self.place, self.record, self.signer = place, record, signer
        self.head = HeadFile(place, ORIGIN)
        self.now = 0.0
        self.checkpoints = RecordCheckpoints(
            record,
            signer,  # type: ignore[arg-type]  # it passes the rest on
            self.head,
            clock=lambda: self.now,
        )

    async def append(self, *, principal: str = "uid:7", operation: str = "hsm.unwrap") -> None:
        now = datetime.now(UTC)
        await self.record.append(
            Event(
                phase=INTENT,
                operation=operation,
                correlation_id="c",
                time=now,
                principal=principal,
            )
        )

    async def look(self) -> None:
        await self.checkpoints._look()

    @property
    def operations(self) -> list[str]:
        return [entry.event.operation for entry in entries_of(self.place / "record")]


@pytest.fixture
async def bench(tmp_path: Path, signing_key: SigningKeyFiles) -> AsyncIterator[Bench]:
    signer = await open_signer(signing_key.uri)
    record = open_record(tmp_path / "record", ORIGIN, signed=True)
    made = Bench(tmp_path, record, SickSigner(signer))
    yield made
    await made.head.close()
    await record.close()
    await signer.close()


def verified(bench: Bench) -> int:
    """By the auditor's command, from the files and the verifier key alone; its exit code."""
    key = publishing.log_key(ORIGIN, bench.signer.real.algorithm, bench.signer.real.public_key)
    return audit(["verify", str(bench.place / "record"), "--key", str(key)])


async def test_entries_are_signed_and_verify(bench: Bench) -> None:
    """A checkpoint covers what came, its signing is on record, and the auditor's command takes the
    record.
    """
    await bench.append()
    await bench.look()
    assert bench.checkpoints.size == 1
    assert bench.operations == ["hsm.unwrap", "hsm.sign", "hsm.sign"]
    intent, outcome = [entry.event for entry in entries_of(bench.place / "record")[1:]]
    assert intent.details["purpose"] == outcome.details["purpose"] == "checkpoint"
    assert (outcome.success, outcome.intent_index) == (True, 1)
    assert verified(bench) == 0
    assert bench.checkpoints.standing() is Standing.SIGNED


async def test_an_idle_record_does_not_grow(bench: Bench) -> None:
    """The entries of a checkpoint's own signing cause none; a signature that a client asked for is
    an entry like any other.
    """
    await bench.append()
    for _ in range(5):
        await bench.look()
    assert bench.signer.signatures == 1
    await bench.append(operation="hsm.sign")
    for _ in range(5):
        await bench.look()
    assert bench.signer.signatures == 2
    assert len(bench.operations) == 6


async def test_it_runs_beside_the_operations_and_to_the_last_entry(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries are signed while it runs, and what came last by its end."""
    monkeypatch.setattr(checkpoints_module, "INTERVAL_S", 0.01)
    task = asyncio.create_task(bench.checkpoints.run())
    await bench.append()
    async with asyncio.timeout(30):
        while bench.checkpoints.size < 1:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)
    monkeypatch.setattr(checkpoints_module, "INTERVAL_S", 1000)
    await bench.append()
    bench.checkpoints.stop()
    async with asyncio.timeout(30):
        await task
    assert bench.checkpoints.size >= 4
    assert verified(bench) == 0


async def test_a_signer_that_fails_is_tried_again_and_then_stops_all(bench: Bench) -> None:
    """A failure is on record and tried again after a pause; for as long as an entry may wait
    nothing is refused, then everything is, until a checkpoint covers it.
    """
    bench.signer.fault = Unavailable("sick")
    await bench.append()
    await bench.look()
    await bench.look()  # within the pause: nothing
    assert bench.operations == ["hsm.unwrap", "hsm.sign", "hsm.sign"]
    failed = entries_of(bench.place / "record")[2].event
    assert (failed.success, failed.reason) == (False, "UNAVAILABLE")
    assert bench.checkpoints.standing() is Standing.FAILING
    assert bench.checkpoints.refusal() is None
    bench.now = publishing.LATE_S + 0.1
    assert bench.checkpoints.standing() is Standing.LATE
    assert isinstance(bench.checkpoints.refusal(), Unavailable)
    bench.signer.fault = None
    await bench.look()
    assert bench.checkpoints.refusal() is None
    assert bench.checkpoints.standing() is Standing.SIGNED
    assert verified(bench) == 0


async def test_a_signature_that_is_none_is_not_published(bench: Bench) -> None:
    """What does not verify with the public half goes into no checkpoint."""
    bench.signer.wrong = True
    await bench.append()
    await bench.look()
    assert bench.record.checkpoint() is None
    assert bench.checkpoints.standing() is Standing.FAILING


async def test_a_key_that_opens_late_signs_what_came_before(bench: Bench) -> None:
    """Until the key's device is open entries wait, and none is made of it; all are signed then."""
    bench.signer.closed = True
    await bench.append()
    await bench.checkpoints.begin()
    await bench.look()
    assert bench.operations == ["hsm.unwrap"]
    bench.signer.closed = False
    bench.now = publishing.RETRY_S[0]
    await bench.look()
    assert bench.checkpoints.size == 1


async def test_a_record_goes_on_where_it_was_signed(bench: Bench) -> None:
    """The next run knows what is signed, and signs no more than what is new."""
    await bench.append()
    await bench.look()
    again = RecordCheckpoints(bench.record, bench.signer.real, bench.head)
    await again.begin()
    assert again.size == 1
    assert again.standing() is Standing.SIGNED


async def test_another_key_is_refused(bench: Bench, make_signing_key: MakeSigningKey) -> None:
    """A record that one key signed is never signed by another; nothing is done meanwhile."""
    await bench.append()
    await bench.look()
    note = bench.record.checkpoint()
    other = await open_signer(make_signing_key().uri)
    foreign = RecordCheckpoints(bench.record, other, bench.head)
    with pytest.raises(ConfigurationError, match=r"record\.signing_key"):
        await foreign.begin()
    assert foreign.standing() is Standing.REFUSED
    assert isinstance(foreign.refusal(), ConfigurationError)
    await bench.append()
    await foreign._look()
    with pytest.raises(ConfigurationError):
        await foreign.sign_now()
    assert bench.record.checkpoint() == note
    await other.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda head: Head(head.origin, "0" * 32, head.size, head.root), "Another folder"),
        (lambda head: Head(head.origin, head.folder_id, 99, head.root), "older copy"),
        (lambda head: Head(head.origin, head.folder_id, head.size, "0" * 64), "older copy"),
    ],
)
async def test_a_record_that_lacks_what_was_signed_is_refused(
    bench: Bench, change: Callable[[Head], Head], said: str
) -> None:
    """A folder that is an older copy, or another one of the same name, is not signed: the state
    knows the newest head.
    """
    await bench.append()
    await bench.look()
    head = await bench.head.load()
    assert head is not None
    assert head.size == 1
    await bench.head.keep(change(head))
    again = RecordCheckpoints(bench.record, bench.signer.real, bench.head)
    with pytest.raises(ConfigurationError, match=said):
        await again.begin()


async def test_a_head_is_kept_before_it_is_signed(bench: Bench) -> None:
    """Where the head cannot be kept nothing is signed; a crash between the two leaves a record that
    goes on.
    """
    await bench.append()
    blocked = bench.head.path.with_suffix(".new")
    blocked.mkdir()
    await bench.look()
    assert bench.record.checkpoint() is None
    assert bench.signer.signatures == 0
    blocked.rmdir()
    bench.signer.fault = Unavailable("killed here")
    bench.now += 10
    await bench.look()
    assert (await bench.head.load()) is not None
    again = RecordCheckpoints(bench.record, bench.signer.real, bench.head)
    await again.begin()
    await again.sign_now()
    assert verified(bench) == 0


async def test_a_head_that_we_did_not_write_is_refused(tmp_path: Path) -> None:
    """A damaged state is named, with what an operator does."""
    head = HeadFile(tmp_path, ORIGIN)
    assert await head.load() is None
    for content in (b"{", b"[]", b'{"size": 1}', b"null"):
        head.path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="record-head"):
            await head.load()
    await head.close()


async def test_a_signed_record_stays_signed(bench: Bench) -> None:
    """Without its key a record that was signed is not opened: nobody drops the signature unseen."""
    await bench.append()
    await bench.look()
    await bench.record.close()
    with pytest.raises(ConfigurationError, match=r"record\.signing_key is missing"):
        open_record(bench.place / "record", ORIGIN)
