"""A version that is not known costs a search, and records that name it again and again do not."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fixtures.softhsm import MakeToken, opened
from ironwork_hsm import KeyMissing
from ironwork_hsm.pkcs11 import backend as backend_module
from ironwork_hsm.pkcs11.known import BELIEVED_S, KnownVersions

CONTEXT = b"row"


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


def test_a_missing_version_is_searched_for_once_a_second(clock: Clock) -> None:
    """What a search has not found is not searched for again before a second is over."""
    known = KnownVersions(clock)
    known.found([1, 2])
    for version in (3, 9):
        assert known.worth_a_search(version)
        known.missed(version)
        assert not known.worth_a_search(version)
        clock.now += BELIEVED_S
        assert known.worth_a_search(version)


def test_all_that_cannot_be_next_share_a_search(clock: Clock) -> None:
    """Records that name ever other versions cost no more searches than one that names one."""
    known = KnownVersions(clock)
    known.found([5])
    assert known.worth_a_search(900)
    known.missed(900)
    assert not any(known.worth_a_search(version) for version in (*range(1, 5), *range(7, 50)))


def test_the_next_version_is_searched_for_at_once(clock: Clock) -> None:
    """A search that was made for another version is no reason to miss one that was just made."""
    known = KnownVersions(clock)
    known.found([1])
    known.missed(900)
    assert known.worth_a_search(2)
    known.found([1, 2])
    assert known.worth_a_search(3)


def test_what_another_session_has_found_is_searched_for(clock: Clock) -> None:
    """Handles are a session's own: a version that one has found each other one may look for, also
    where a search missed it before it was made; until a search finds that it is gone.
    """
    known = KnownVersions(clock)
    known.missed(2)
    known.found([1, 2])
    assert known.worth_a_search(2)
    known.missed(2)
    known.missed(900)
    assert not known.worth_a_search(2)


async def test_unwraps_of_a_missing_version_search_once(
    make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of records that name a version which is not there costs one search, and each gets
    its KeyMissing; one that this process then makes is known at once.
    """
    searches: list[str] = []
    real = backend_module.find_keys

    def counted(session: Any, label: str) -> Any:
        searches.append(label)
        return real(session, label)

    async with opened(make_token(with_key=True).uri, lanes=1) as backend:
        backend._known._clock = Clock()  # type: ignore[attr-defined]
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        monkeypatch.setattr(backend_module, "find_keys", counted)
        for version in (2, 2, 2, 2, 700, 701):
            with pytest.raises(KeyMissing):
                await backend.unwrap(replace(wrapped, key_version=version), CONTEXT)
        assert len(searches) == 1
        await backend.create_version()
        made = await backend.wrap(bytes(32), CONTEXT)
        assert made.key_version == 2
        assert await backend.unwrap(made, CONTEXT) == bytes(32)


async def test_a_version_of_another_process_is_found_during_a_flood(
    make_token: MakeToken,
) -> None:
    """While records name versions that are not there, the one that another process makes is found
    at its first use, on every lane.
    """
    uri = make_token(with_key=True).uri
    async with opened(uri) as maker, opened(uri, lanes=4) as other:
        other._known._clock = Clock()  # type: ignore[attr-defined]
        wrapped = await maker.wrap(bytes(32), CONTEXT)
        with pytest.raises(KeyMissing):
            await other.unwrap(replace(wrapped, key_version=700), CONTEXT)
        await maker.create_version()
        wrapped = await maker.wrap(bytes(32), CONTEXT)
        results = await asyncio.gather(*(other.unwrap(wrapped, CONTEXT) for _ in range(40)))
        assert all(result == bytes(32) for result in results)
