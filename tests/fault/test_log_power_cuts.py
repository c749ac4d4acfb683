"""Power cuts at every step of a recorded run. `kill -9` keeps the page cache, so it cannot show a
missing sync: here a real run's writes, names and syncs are recorded by strace, and each prefix is
replayed into a fresh folder on a disk that forgets what was not yet synced.
"""

import asyncio
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from fixtures.journal_disk import Unsynced
from fixtures.log_check import held
from fixtures.log_faults_child import signed
from fixtures.log_faults_disk import ForgetfulDisk, concerns
from fixtures.log_faults_trace import Step, record
from fixtures.tlog_made import KEY, ORIGIN
from ironwork_audit import parse
from ironwork_audit.source import FolderSource
from ironwork_audit.tlog import Checkpoint, parse_note
from ironwork_audit.verify import verify
from ironwork_server.journal import FileJournal

CHILD = "fixtures.log_faults_child"


def recorded(base: Path, calls: int, snapshot_every: int) -> list[Step]:
    """What the child does to `base/log`, but for the steps that touch nothing below it."""
    base.mkdir(exist_ok=True)
    steps = record(
        CHILD, str(base / "log"), str(calls), str(snapshot_every), trace=base.with_name("trace")
    )
    return [step for step in steps if concerns(base, step)]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Step]]:
    """150 calls: 300 entries, so one full tile."""
    base = tmp_path_factory.mktemp("short") / "disk"
    return base, recorded(base, 150, 60)


async def reopened(folder: Path) -> None:
    """Open as a server does, sign what is there, and close."""
    journal = FileJournal.open(folder, ORIGIN, file_system=Unsynced())
    await journal.publish(signed(await journal.integrate()))
    await journal.close()


def check(folder: Path, said: Sequence[str], interruptions: int = 1) -> None:
    """Nothing that was acknowledged is lost, the log opens and verifies, and at most the call that
    was interrupted (each time) has no outcome, and is marked so.
    """
    words = [line.split() for line in said]
    published = [int(word[1]) for word in words if word[0] == "checkpoint"]
    if published:
        note = parse_note((folder / "checkpoint").read_bytes())
        assert Checkpoint.parse(note.text).size >= published[-1]
    asyncio.run(reopened(folder))
    found = [parse(entry).event for entry in held(folder)]
    for word in words:
        if word[0] == "entry":
            assert found[int(word[1])].correlation_id == word[2]
    verdict = verify(FolderSource(folder), KEY)
    assert verdict.finding is None
    assert verdict.checkpoint is not None
    assert verdict.checkpoint.size == len(found)
    assert verdict.unfinished <= interruptions
    marks = [event for event in found if event.operation == "journal.unfinished"]
    assert [mark.details["count"] for mark in marks] == [1] * verdict.unfinished


def cut_power(base: Path, steps: Sequence[Step], at: Sequence[int], times: int) -> None:
    """Cut the power after each of these steps: with nothing that was not synced, and `times` with
    some of it.
    """
    disk, wanted, chance = ForgetfulDisk(base), frozenset(at), random.Random(20261123)
    for number, step in enumerate(steps):
        disk.follow(step)
        if number not in wanted:
            continue
        for luck in [None, *[chance] * times]:
            place = base.with_name("after")
            disk.after_power_cut(place, luck)
            try:
                check(place / "log", disk.said)
            except BaseException as error:
                error.add_note(f"power cut after step {number}: {step.call.name} {step.call.path}")
                raise
            shutil.rmtree(place)


def test_a_power_cut_loses_nothing_that_was_acknowledged(
    short_run: tuple[Path, list[Step]],
) -> None:
    """At some of a run's steps, those where tiles are written and files cut among them."""
    base, steps = short_run
    chance = random.Random(1)
    tiles = [at for at, step in enumerate(steps) if "/tile" in step.call.path]
    cuts = [at for at, step in enumerate(steps) if step.call.name == "ftruncate" and step.done]
    at = [*chance.sample(range(len(steps)), 20), *chance.sample(tiles, 20), *cuts]
    cut_power(base, steps, at, times=2)


def kill_then_cut_power(base: Path, steps: Sequence[Step], at: Sequence[int]) -> None:
    """Kill the process after each of these steps, let another go on, and cut the power at its end:
    what the first had not synced when it was killed, the second has to.
    """
    for number in at:
        disk = ForgetfulDisk(base)
        for step in steps[: number + 1]:
            disk.follow(step)
        again = base.with_name("again")
        disk.after_kill(again)
        disk.at(again)
        disk.follow_all(recorded(again, 24, 10))
        place = base.with_name("after")
        disk.after_power_cut(place)
        check(place / "log", disk.said, interruptions=2)
        shutil.rmtree(place)
        shutil.rmtree(again)


def makes_folder(step: Step) -> bool:
    return step.done and step.call.name == "mkdir"


def test_a_power_cut_after_a_kill(short_run: tuple[Path, list[Step]]) -> None:
    """Names that a killed process had made and not synced are synced by the next."""
    base, steps = short_run
    made = [at for at, step in enumerate(steps) if makes_folder(step)]
    kill_then_cut_power(base, steps, [made[0], made[1], made[3], made[-1]])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_power_cut_after_a_kill_anywhere(short_run: tuple[Path, list[Step]]) -> None:
    """The same at each new folder, and at 40 other steps."""
    base, steps = short_run
    made = [at for at, step in enumerate(steps) if makes_folder(step)]
    others = random.Random(2).sample(range(len(steps)), 40)
    kill_then_cut_power(base, steps, sorted({*made, *others}))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_power_cut_at_every_step(tmp_path: Path) -> None:
    """At every step of a run of 600 entries, each with three fates of what was not synced."""
    base = tmp_path / "disk"
    steps = recorded(base, 300, 100)
    cut_power(base, steps, range(len(steps)), times=2)
