"""Turns at reading requests."""

import asyncio

import pytest

from ironwork_server.access.turns import Turns
from ironwork_server.core.errors import Unavailable


async def spin() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Reading:
    """Calls that hold their turn until they are told."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.held: list[str] = []
        self.go = asyncio.Event()

    async def read(self, name: str, role: str = "") -> None:
        async with self.turns.turn(name, role):
            self.held.append(name)
            await self.go.wait()


async def test_one_name_leaves_turns_to_the_others() -> None:
    """Whoever holds its share waits, while others pass it; when it is over all have been served."""
    reading = Reading(Turns(total=3, per_name=2))
    tasks = [asyncio.ensure_future(reading.read(name)) for name in ["a"] * 5 + ["b", "c"]]
    await spin()
    assert reading.held == ["a", "a", "b"], "three in all, two of one name"
    reading.go.set()
    await asyncio.gather(*tasks)
    assert sorted(reading.held) == ["a"] * 5 + ["b", "c"]
    assert reading.turns._shares == {}, "and nobody is remembered"


async def test_one_role_leaves_the_others_theirs() -> None:
    """However many callers of one role hold and await turns, one of another role has its own."""
    reading = Reading(Turns(total=2, per_name=1))
    agents = [asyncio.ensure_future(reading.read(name, "agent")) for name in "abcd"]
    await spin()
    admins = [asyncio.ensure_future(reading.read(name, "key-admin")) for name in "axy"]
    await spin()
    assert reading.held == ["a", "b", "a", "x"], "two of each"
    reading.go.set()
    await asyncio.gather(*agents, *admins)
    assert reading.turns._shares == {}


async def test_waiting_and_reading_end_at_the_deadline() -> None:
    """Who reads for too long loses its turn, and who waits for too long is told so."""
    reading = Reading(Turns(total=1, per_name=1, deadline_s=0.01))
    results = await asyncio.gather(*(reading.read(name) for name in "aab"), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3
    assert {getattr(result, "reason", "") for result in results} == {"REQUEST_TIMEOUT"}
    reading.go.set()
    await reading.read("a")


async def test_slow_senders_hold_up_nobody_for_long() -> None:
    """Who sends slowly keeps its turn for a part of the deadline only: when all turns are held by
    such, whoever waits has its own while there is time left to read.
    """
    reading = Reading(Turns(total=2, per_name=1, deadline_s=30, held_s=0.01))
    slow = [asyncio.ensure_future(reading.read(name)) for name in "ab"]
    await spin()
    async with reading.turns.turn("c"):
        pass
    results = await asyncio.gather(*slow, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 2


async def test_a_timeout_of_the_readers_own_passes() -> None:
    """Only the turn's own deadline is told as one."""
    with pytest.raises(TimeoutError):
        async with Turns().turn("a"):
            raise TimeoutError
