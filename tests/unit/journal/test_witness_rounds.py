"""Several witnesses: who is asked when, what a quorum is, and what is told."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from fixtures.journal_events import until
from ironwork_audit.tlog import (
    Checkpoint,
    KeyType,
    Signature,
    VerifierKey,
    format_note,
    parse_note,
)
from ironwork_audit.witness_submission import WitnessConflict, WitnessFailed
from ironwork_server.core.errors import Unavailable
from ironwork_server.journal import witnesses as module
from ironwork_server.journal.witness import Witness
from ironwork_server.journal.witnesses import BACKOFF_S, LATE_S, Witnesses

ORIGIN = "keys.test/a"


def note(size: int) -> bytes:
    return format_note(
        Checkpoint(ORIGIN, size, bytes(32)).text, [Signature("log", b"logk", b"s" * 64)]
    )


class Ready(Witness):
    """A witness whose answers a test decides: an error, or its signature once `hold` is set."""

    def __init__(self, name: str) -> None:
        self.key = VerifierKey(name, KeyType.COSIGNATURE_V1, bytes(32))
        self.size, self.timestamp, self.note = 0, 0, None
        self.forgot = False
        self.fault: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.asked: list[bytes] = []

    async def submit(self, note: bytes, prove: object) -> Signature:
        self.asked.append(note)
        await self.hold.wait()
        if self.fault is not None:
            raise self.fault
        self.size = Checkpoint.parse(parse_note(note).text).size
        self.note = note
        return Signature(self.key.name, b"wkey", b"t" * 72)


class Told:
    """The archive and the listener, remembered."""

    def __init__(self) -> None:
        self.published: list[bytes] = []
        self.kept: list[tuple[str, int]] = []
        self.results: list[tuple[str, str]] = []
        self.alarms: list[tuple[str, str, int]] = []
        self.fault: Exception | None = None

    async def prove(self, old_size: int, size: int) -> Sequence[bytes]:
        return []

    async def keep(self, key: VerifierKey, note: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self.kept.append((key.name, Checkpoint.parse(parse_note(note).text).size))

    async def publish(self, note: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self.published.append(note)

    def submitted(self, witness: str, result: str) -> None:
        self.results.append((witness, result))

    def witnessed(self, witness: str, size: int, timestamp: int) -> None:
        """Counted by submitted."""

    async def alarm(self, witness: str, reason: str, size: int) -> None:
        self.alarms.append((witness, reason, size))

    def names(self) -> list[str]:
        """Who signed the newest published checkpoint."""
        return [item.name for item in parse_note(self.published[-1]).signatures]


class Rounds:
    """Three witnesses of which two are a quorum, and a clock that the test holds."""

    def __init__(self) -> None:
        self.told = Told()
        self.now = 1000.0
        self.one, self.two, self.three = (Ready(name) for name in ("one", "two", "three"))
        self.all = Witnesses(
            [self.one, self.two, self.three],
            2,
            self.told,
            self.told,
            clock=lambda: self.now,
        )

    def pass_by(self, seconds: float) -> None:
        """Let time pass, and whoever waits for it look at the clock."""
        self.now += seconds
        self.all._wanted.set()


@pytest.fixture
async def rounds(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rounds]:
    monkeypatch.setattr(module, "ROUND_S", 0.001)
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    monkeypatch.setattr(module, "END_S", 0.05)
    rounds = Rounds()
    task = asyncio.create_task(rounds.all.run())
    yield rounds
    rounds.all.stop()
    async with asyncio.timeout(30):
        await task


async def test_all_sign(rounds: Rounds) -> None:
    """Every witness signs; each is kept, and the checkpoint is published with all of them."""
    rounds.all.offer(note(5))
    await until(lambda: len(rounds.told.published) == 2)
    assert rounds.told.names() == ["log", "one", "two", "three"]
    assert sorted(rounds.told.kept) == [("one", 5), ("three", 5), ("two", 5)]
    assert str(rounds.all.status()) == "witnessed up to 5 entries, 0 seconds ago"
    await rounds.all.check()
    rounds.pass_by(7)
    assert str(rounds.all.status()) == "witnessed up to 5 entries, 7 seconds ago"


async def test_an_idle_log_asks_nobody(rounds: Rounds) -> None:
    """A checkpoint that all have signed is not shown again."""
    rounds.all.offer(note(5))
    await until(lambda: len(rounds.told.results) == 3)
    rounds.pass_by(3600)
    await asyncio.sleep(0.05)
    assert len(rounds.told.results) == 3


async def test_a_quorum_does_not_wait_for_the_rest(rounds: Rounds) -> None:
    """One that hangs is passed over in the next rounds, and one signature more is published when
    it comes in time.
    """
    rounds.three.hold.clear()
    for size in (5, 9, 12):
        rounds.all.offer(note(size))
        await until(lambda size=size: rounds.all.status().size == size)
    assert [len(each.asked) for each in (rounds.one, rounds.two, rounds.three)] == [3, 3, 1]
    await until(lambda: len(rounds.told.published) == 3)
    rounds.three.hold.set()
    await until(lambda: rounds.three.size == 12)
    await until(lambda: rounds.told.names() == ["log", "one", "two", "three"])


async def test_without_a_quorum_it_is_unwitnessed(rounds: Rounds) -> None:
    """One signature of two is kept and not published; health says so once it is late."""
    assert str(rounds.all.status()) == "UNWITNESSED"
    with pytest.raises(Unavailable) as refused:
        await rounds.all.check()
    assert refused.value.reason == "UNWITNESSED"
    rounds.all.resume(4)
    rounds.two.fault = rounds.three.fault = WitnessFailed("WITNESS_UNREACHABLE")
    rounds.all.offer(note(5))
    await until(lambda: len(rounds.told.results) == 3)
    assert (rounds.told.published, rounds.told.kept) == ([], [("one", 5)])
    await rounds.all.check()
    rounds.pass_by(LATE_S + 1)
    with pytest.raises(Unavailable):
        await rounds.all.check()
    rounds.two.fault = None
    rounds.pass_by(BACKOFF_S[-1])
    await until(lambda: rounds.all.status().size == 5)
    await rounds.all.check()


async def test_whoever_fails_is_left_alone_longer_each_time(rounds: Rounds) -> None:
    """An unreachable witness is asked again after 1, 2, 5 seconds and so on, not in a loop."""
    rounds.one.fault = WitnessFailed("WITNESS_UNREACHABLE")
    rounds.all.offer(note(5))
    for count, delay in enumerate(BACKOFF_S, 1):
        await until(lambda count=count: rounds.told.results.count(
            ("one", "WITNESS_UNREACHABLE")) == count)  # fmt: skip
        rounds.pass_by(delay - 0.5)
        await asyncio.sleep(0.02)
        assert len(rounds.one.asked) == count
        rounds.pass_by(0.6)
    rounds.one.fault = None
    await until(lambda: rounds.one.size == 5 or not rounds.pass_by(60))


async def test_a_conflict_is_told_once(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    """An alarm for each conflict that begins; health says it until the witness signs again,
    whatever else fails meanwhile and whoever else signs.
    """
    caplog.set_level("INFO")
    rounds.one.fault = WitnessConflict("WITNESS_CONFLICT")
    rounds.all.offer(note(5))
    await until(lambda: len(rounds.told.results) == 3)
    assert rounds.told.alarms == [("one", "WITNESS_CONFLICT", 5)]
    for fault in (WitnessFailed("WITNESS_BUSY"), WitnessConflict("WITNESS_CONFLICT")):
        rounds.one.fault = fault
        asked = len(rounds.one.asked)
        rounds.pass_by(BACKOFF_S[-1])
        await until(lambda asked=asked: len(rounds.one.asked) > asked)
        await until(lambda: rounds.told.results[-1] == ("one", rounds.one.fault.reason))  # type: ignore[union-attr]  # it is one of the two above
    with pytest.raises(Unavailable) as refused:
        await rounds.all.check()
    assert refused.value.reason == "WITNESS_CONFLICT"
    assert len(rounds.told.alarms) == 1
    rounds.one.fault = None
    rounds.pass_by(BACKOFF_S[-1])
    await until(lambda: rounds.told.results[-1] == ("one", "ok"))
    await rounds.all.check()
    assert "witness.recovered" in caplog.text


async def test_a_witness_that_forgot_is_told(rounds: Rounds) -> None:
    """Once, with the size that it had signed before."""
    rounds.one.size, rounds.one.forgot = 4, True
    rounds.all.offer(note(5))
    await until(lambda: rounds.told.alarms == [("one", "WITNESS_FORGOT", 4)])
    rounds.all.offer(note(6))
    await until(lambda: rounds.all.status().size == 6)
    assert len(rounds.told.alarms) == 1


async def test_a_witness_that_always_forgets_is_told_seldom(rounds: Rounds) -> None:
    """Each alarm is an entry, and so a checkpoint that is shown: not more than one a minute, or a
    witness could make a log grow without end.
    """
    for size in range(5, 15):
        rounds.one.size, rounds.one.forgot = 4, True
        rounds.all.offer(note(size))
        await until(lambda size=size: rounds.told.kept[-3:].count(("one", size)) == 1)  # type: ignore[misc]
        assert not rounds.one.forgot
    assert len(rounds.told.alarms) == 1
    rounds.pass_by(BACKOFF_S[-1])
    rounds.one.forgot = True
    rounds.all.offer(note(15))
    await until(lambda: len(rounds.told.alarms) == 2)


async def test_what_nobody_expected_stays_here(
    rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    """A witness's code that breaks is one witness that fails."""
    rounds.one.fault = RuntimeError("secret?")
    rounds.all.offer(note(5))
    await until(lambda: ("one", "INTERNAL") in rounds.told.results)
    await until(lambda: rounds.all.status().size == 5)
    assert "secret?" not in caplog.text


@pytest.mark.parametrize("fault", [OSError(), TimeoutError(), Unavailable("x", reason="AUDIT")])
async def test_a_disk_that_fails_loses_nothing(
    fault: Exception, rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be kept is said, and the next checkpoint's is kept again."""
    rounds.told.fault = fault
    rounds.all.offer(note(5))
    await until(lambda: rounds.all.status().size == 5)
    await until(lambda: "witness.not_kept" in caplog.text)
    rounds.told.fault = None
    rounds.all.offer(note(6))
    await until(lambda: ("one", 6) in rounds.told.kept)


async def test_a_deadline_ends_a_witness_that_hangs(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn ends as a failure, and it is asked again."""
    monkeypatch.setattr(module, "ANSWER_S", 0.02)
    rounds.one.hold.clear()
    rounds.all.offer(note(5))
    await until(lambda: ("one", "WITNESS_TIMEOUT") in rounds.told.results)


async def test_the_end_waits_for_nobody_long(rounds: Rounds) -> None:
    """stop() shows the last checkpoint; whoever hangs is given up."""
    rounds.one.hold.clear()
    rounds.all.offer(note(5))
    await until(lambda: len(rounds.one.asked) == 1)
    rounds.all.offer(note(8))
    rounds.all.stop()
    await until(lambda: rounds.all.status().size == 8)
