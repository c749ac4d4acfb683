"""Opening what a crash, or a hand, left behind."""

import asyncio
import json
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
from ironwork_audit import header, parse, render
from ironwork_server.journal import FileJournal, JournalDamaged
from ironwork_server.journal.events import to_event


def line(index: int, **changes: object) -> bytes:
    event = to_event(made(index, **changes))
    return render(event, origin=ORIGIN, sequence=index, logged_time=NOW) + b"\n"


def written(folder: Path, content: bytes) -> Path:
    """A journal's folder with this content."""
    folder.mkdir(mode=0o700)
    log_path(folder).write_bytes(content)
    log_path(folder).chmod(0o600)
    return folder


def reopened(folder: Path) -> list[str]:
    """The operations in the log after it was opened and closed once."""
    asyncio.run(FileJournal.open(folder, ORIGIN).close())
    return operations(folder)


HEAD = header(ORIGIN)
WHOLE = HEAD + line(0) + line(1)


@pytest.mark.parametrize(
    "torn",
    [
        b"{",
        line(2)[:-1],
        line(2)[:40],
        b"\0" * 5000,
        line(2)[:40] + b"\0" * 100_000,
        line(2)[:40] + b"\0" * 9 + b"\n",
    ],
    ids=["brace", "no line feed", "half", "zeros", "half and zeros", "zeros inside"],
)
def test_what_a_crash_left_is_cut_off_and_said(tmp_path: Path, torn: bytes) -> None:
    """A last line that is not whole was never acknowledged: it goes, and the log says so."""
    folder = written(tmp_path / "j", WHOLE + torn)
    assert reopened(folder) == ["AddKey", "AddKey", "journal.recovered"]
    recovered = entries(folder)[2]
    assert recovered.sequence == 2
    assert recovered.event.details == {"bytes": len(torn)}
    assert log_path(folder).read_bytes().startswith(WHOLE)
    assert len(reopened(folder)) == 3


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"", 1),
        (b"\n", 1),
        (b"{}\n" + line(0), 1),
        (HEAD[:-1], 1),
        (HEAD + b"bad\n" + line(1), 2),
        (HEAD + line(0)[:-1] + line(1), 2),
        (HEAD + line(0) + b"no entry\n", 3),
        (HEAD + line(0) + b"\0" * 50 + b"\n" + line(2), 3),
        (HEAD + line(0) + line(2), 3),
        (HEAD + line(0) + line(1) + line(1), 4),
        (HEAD + line(1), 2),
        (HEAD + line(0) + b"\n" + line(1), 3),
        (HEAD + line(0).replace(b"keys.test/a", b"keys.test/b"), 2),
        (HEAD + line(0) + b"x" * 70_000 + b"\n", 3),
        (HEAD + line(0) + b"\0" * (2 << 20), 3),
    ],
    ids=[
        "empty", "blank", "no header", "half header", "bad line", "joined lines",
        "bad last line", "hole", "gap", "twice", "first missing", "blank line",
        "other origin", "too long", "too many zeros",
    ],
)  # fmt: skip
def test_any_other_damage_refuses_to_open(tmp_path: Path, content: bytes, number: int) -> None:
    """A log that is not what was written is not gone on with: the error names the line, and the
    file is left as it is.
    """
    folder = written(tmp_path / "j", content)
    with pytest.raises(JournalDamaged, match=f"line {number}:") as damaged:
        FileJournal.open(folder, ORIGIN)
    assert damaged.value.line == number
    assert log_path(folder).read_bytes() == content


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_log_cut_anywhere_opens_with_all_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Wherever a crash cuts the last commit, every whole line stays, and nothing else."""
    lines = [line(index) for index in range(4)]
    content = HEAD + b"".join(lines)
    cut = data.draw(st.integers(len(HEAD), len(content)))
    folder = written(tmp_path_factory.mktemp("cut") / "j", content[:cut])
    whole = content[len(HEAD) : cut].count(b"\n")
    found = reopened(folder)
    assert found[:whole] == ["AddKey"] * whole
    assert found[whole:] == ([] if content[:cut].endswith(b"\n") else ["journal.recovered"])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(WHOLE + line(2)) - 1), st.integers(0, 255))
def test_a_changed_byte_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    """One changed byte is refused, or leaves a log whose other lines are what they were."""
    content = bytearray(WHOLE + line(2))
    content[place] = byte
    folder = written(tmp_path_factory.mktemp("flip") / "j", bytes(content))
    try:
        asyncio.run(FileJournal.open(folder, ORIGIN).close())
    except JournalDamaged as damaged:
        assert damaged.line == bytes(content)[:place].count(b"\n") + 1  # noqa: PT017 - either is right
        return
    except Exception as other:  # noqa: BLE001 - any error but the journal's own fails the rule
        assert type(other).__name__ == "OriginDiffers"  # noqa: PT017 - the header's byte
        return
    changed = bytes(content)[:place].count(b"\n") - 1
    lines = log_path(folder).read_bytes().splitlines()[1:]
    for index in {0, 1} - {changed}:
        parse(lines[index])
    assert [json.loads(entry)["metadata"]["sequence"] for entry in lines] == list(range(len(lines)))


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
