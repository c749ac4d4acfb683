"""Opening what a crash, or a hand, left behind."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.journal_events import (
    NOW,
    ORIGIN,
    entries,
    intent,
    log_path,
    made,
    operations,
    outcome,
)
from fixtures.log_check import held
from ironwork_audit import render
from ironwork_audit.log.pending import pack_frame
from ironwork_server.core.values import Phase
from ironwork_server.journal import FileJournal, JournalDamaged
from ironwork_server.journal.events import to_event
from ironwork_server.journal.state import LogState


def entry(index: int, **changes: object) -> bytes:
    event = to_event(made(index, **changes))
    return render(event, origin=ORIGIN, sequence=index, logged_time=NOW)


def frame(first: int, count: int = 1) -> bytes:
    return pack_frame(first, [entry(index) for index in range(first, first + count)])


def written(folder: Path, content: bytes) -> Path:
    """A journal's folder whose write-ahead file has this content."""
    asyncio.run(FileJournal.open(folder, ORIGIN).close())
    log_path(folder).write_bytes(content)
    return folder


def reopened(folder: Path) -> list[str]:
    """The operations in the log after it was opened and closed once."""
    asyncio.run(FileJournal.open(folder, ORIGIN).close())
    return operations(folder)


WHOLE = frame(0) + frame(1)


@pytest.mark.parametrize(
    "torn",
    [
        b"{",
        frame(2)[:-1],
        frame(2)[:40],
        frame(2, 3)[:-500],
        b"\0" * 5000,
        frame(2)[:40] + b"\0" * 100_000,
        frame(2)[:300] + b"\0" * 9 + frame(2)[309:],
        b"\0" * 20 + frame(2)[20:],
    ],
    ids=["brace", "no line feed", "half", "two of three", "zeros", "half and zeros", "zeros inside",
         "zeros before"],
)  # fmt: skip
def test_what_a_crash_left_is_cut_off_and_said(tmp_path: Path, torn: bytes) -> None:
    """A last commit that is not whole was never acknowledged: it goes, and the log says so."""
    folder = written(tmp_path / "j", WHOLE + torn)
    assert reopened(folder) == ["AddKey", "AddKey", "journal.recovered"]
    recovered = entries(folder)[2]
    assert recovered.sequence == 2
    assert recovered.event.details == {"bytes": len(torn)}
    assert log_path(folder).read_bytes() == b""
    assert len(reopened(folder)) == 3


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"bad\n" + frame(0), "frame 1"),
        (b"{}\n", "frame 1"),
        (b"[" * 200 + b"\n", "frame 1"),
        (b"x" * 70_000, "frame 1"),
        (frame(0)[:-1] + frame(1), "frame 1"),
        (frame(0) + frame(1).replace(b"AddKey", b"AddKee"), "frame 2"),
        (frame(0).replace(b'"count":1', b'"count":2'), "frame 1"),
        (frame(0).replace(b'"length":', b'"length":-'), "frame 1"),
        (frame(0) + frame(2), "entries are missing"),
        (frame(0) + frame(1) + frame(1), "entries are missing"),
        (frame(1), "entries are missing"),
        (frame(0) + b"\0" + b"x" * (3 << 20), "frame 2"),
        (pack_frame(0, [b'{"event_code":"DeleteKey"}']), "entry 0"),
    ],
    ids=["bad line", "no head", "deep", "long", "joined", "changed", "count", "length", "gap",
         "twice", "first missing", "too much", "no event"],
)  # fmt: skip
def test_any_other_damage_refuses_to_open(tmp_path: Path, content: bytes, where: str) -> None:
    """A log that is not what was written is not gone on with: the error says where, and the file
    is left as it is.
    """
    folder = written(tmp_path / "j", content)
    with pytest.raises(JournalDamaged, match=where):
        FileJournal.open(folder, ORIGIN)
    assert log_path(folder).read_bytes() == content


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_log_cut_anywhere_opens_with_all_its_whole_commits(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Wherever a crash cuts, every whole commit stays, and nothing else."""
    frames = [frame(0), frame(1, 2), frame(3)]
    content = b"".join(frames)
    cut = data.draw(st.integers(0, len(content)))
    folder = written(tmp_path_factory.mktemp("cut") / "j", content[:cut])
    ends = [(len(frames[0]), 1), (len(frames[0] + frames[1]), 3), (len(content), 4)]
    whole = max((count for end, count in ends if end <= cut), default=0)
    found = reopened(folder)
    assert found[:whole] == ["AddKey"] * whole
    at_an_end = cut in {0, *(end for end, _ in ends)}
    assert found[whole:] == ([] if at_an_end else ["journal.recovered"])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(WHOLE + frame(2)) - 1), st.integers(1, 255))
def test_a_changed_byte_is_never_taken_for_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    """One changed byte is refused; one that looks like a crash's in the last commit costs that
    commit, and the log says so.
    """
    content = bytearray(WHOLE + frame(2))
    content[place] ^= change
    folder = written(tmp_path_factory.mktemp("flip") / "j", bytes(content))
    try:
        found = reopened(folder)
    except JournalDamaged:
        return
    assert found[-1] == "journal.recovered"
    for kept in held(folder)[:-1]:
        assert kept in {entry(0), entry(1)}


def test_deletions_in_a_snapshot(tmp_path: Path) -> None:
    """What a state says survives its dump; what is none is refused."""
    state = LogState()
    deleted = made(0, operation="DeleteKey", phase=Phase.OUTCOME, success=True, intent_index=3)
    state.take(4, render(to_event(deleted), origin=ORIGIN, sequence=4, logged_time=NOW))
    state.take(5, entry(5, phase=Phase.INTENT))
    again = LogState()
    again.load(state.dump()())
    assert again.was_deleted("acme", "k-0")
    assert not again.was_deleted("acme", "k-1")
    assert list(again.unfinished) == [5]
    for bad in (b"", b"[]", b"[]\nshort", b"{}\n", b'["1"]\n', b"no\n"):
        with pytest.raises(ValueError, match=r"state|Expecting"):
            again.load(bad)


def test_a_mark_covers_all_before_it(tmp_path: Path) -> None:
    """Only intents after the last mark count as unfinished."""
    folder = tmp_path / "j"

    async def crash(number: int) -> None:
        journal = FileJournal.open(folder, ORIGIN)
        await journal.append(intent(number), intent(number + 1))
        await journal.close()

    asyncio.run(crash(0))
    asyncio.run(crash(2))
    assert reopened(folder).count("journal.unfinished") == 2
    marks = [e.event for e in entries(folder) if e.event.operation == "journal.unfinished"]
    assert [mark.details for mark in marks] == [
        {"count": 2, "first_indexes": "0,1"},
        {"count": 2, "first_indexes": "3,4"},
    ]


def test_an_outcome_may_come_in_any_order(tmp_path: Path) -> None:
    """An outcome settles the intent that it names, not the last one."""
    folder = tmp_path / "j"

    async def run() -> None:
        journal = FileJournal.open(folder, ORIGIN)
        await journal.append(intent(0), intent(1), intent(2), outcome(1, 1), outcome(0, 0))
        await journal.close()

    asyncio.run(run())
    reopened(folder)
    assert entries(folder)[-1].event.details == {"count": 1, "first_indexes": "2"}
