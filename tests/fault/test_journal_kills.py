"""The journal's writer killed in the act."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures import journal_child
from fixtures.journal_events import ORIGIN, entries
from ironwork_server.journal import FileJournal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def killed_at_random(folder: Path, first: int, chance: random.Random) -> dict[int, str]:
    """What a writer acknowledged that was killed after a random number of acknowledgements."""
    child = subprocess.Popen(
        [sys.executable, journal_child.__file__, str(folder), ORIGIN, str(first)],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    acknowledged: dict[int, str] = {}

    def take(line: bytes) -> None:
        index, _, correlation = line.decode().strip().partition(" ")
        assert int(index) not in acknowledged
        acknowledged[int(index)] = correlation

    with child.stdout:
        for _ in range(chance.randint(1, 300)):
            take(child.stdout.readline())
        child.kill()
        for line in child.stdout.read().splitlines(keepends=True):
            if line.endswith(b"\n"):
                take(line)
    child.wait(30)
    return acknowledged


def kill_again_and_again(folder: Path, times: int) -> None:
    chance = random.Random(20261123)
    acknowledged: dict[int, str] = {}
    for round_number in range(times):
        fresh = killed_at_random(folder, 1_000_000 * round_number, chance)
        assert not fresh.keys() & acknowledged.keys()
        acknowledged |= fresh
    asyncio.run(FileJournal.open(folder, ORIGIN).close())
    found = entries(folder)
    assert [entry.sequence for entry in found] == list(range(len(found)))
    for index, correlation in acknowledged.items():
        assert found[index].event.correlation_id == correlation
    marks = [entry for entry in found if entry.event.operation == "journal.unfinished"]
    assert len(marks) == times
    intents = sum(entry.event.phase == "intent" for entry in found)
    assert sum(int(mark.event.details["count"]) for mark in marks) == intents


def test_kill_9_loses_nothing_that_was_acknowledged(folder: Path) -> None:
    """20 writers killed in the act, one after the other, on one log: every acknowledged entry is
    there under its index, and every start opened the log and marked what was unfinished.
    """
    kill_again_and_again(folder, 20)


@pytest.mark.slow
def test_kill_9_two_hundred_times(folder: Path) -> None:
    """The same, 200 times."""
    kill_again_and_again(folder, 200)
