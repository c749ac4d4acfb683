"""What a log and a witness say to each other, as text."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.tlog_made import KEY, LOG, WITNESS, WITNESS_KEY, signed_checkpoint
from ironwork_audit.tlog import (
    BadNote,
    Checkpoint,
    Signature,
    cosigned_message,
    pack_cosignature,
    parse_note,
)
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_audit.witness import (
    MAX_ANSWER_BYTES,
    BadAnswer,
    add_checkpoint,
    cosigned,
    parse_cosignature_lines,
    parse_size,
)

ROOT = b"r" * 32
NOTE = signed_checkpoint(7, ROOT)
TEXT = parse_note(NOTE).text


def line(timestamp: int = 1_700_000_000, text: str = TEXT) -> bytes:
    """A cosignature line, as the witness of the fixtures writes it."""
    value = pack_cosignature(timestamp, WITNESS.sign(cosigned_message(text, timestamp)))
    encoded = base64.b64encode(WITNESS_KEY.key_id + value).decode()
    return f"\u2014 {WITNESS_KEY.name} {encoded}\n".encode()


def test_a_request_is_sizes_hashes_and_the_note() -> None:
    """`old N`, a line for each hash, an empty line, the note's bytes (tlog-witness)."""
    encoded = base64.b64encode(ROOT)
    assert add_checkpoint(3, [ROOT] * 2, NOTE) == b"old 3\n%s\n%s\n\n" % (encoded, encoded) + NOTE
    assert add_checkpoint(0, [], NOTE) == b"old 0\n\n" + NOTE


def test_a_proof_has_at_most_63_hashes() -> None:
    """The specification's bound is kept on our side too."""
    assert add_checkpoint(1, [ROOT] * 63, NOTE)
    with pytest.raises(ValueError, match="63"):
        add_checkpoint(1, [ROOT] * 64, NOTE)


@given(st.integers(0, 2**63 - 1))
def test_a_size_has_one_spelling(size: int) -> None:
    """Decimal digits and a line feed."""
    assert parse_size(b"%d\n" % size) == size


@pytest.mark.parametrize("body", [b"", b"7", b"07\n", b"-1\n", b"7\n\n", b" 7\n", b"%d\n" % 2**63])
def test_anything_else_is_no_size(body: bytes) -> None:
    """What is not exactly a size is refused."""
    with pytest.raises(BadAnswer):
        parse_size(body)


@given(st.binary(max_size=200))
def test_no_answer_is_taken_for_what_it_is_not(body: bytes) -> None:
    """Random bytes are refused by the one error."""
    for parse in (parse_size, lambda data: parse_cosignature_lines(data, NOTE, WITNESS_KEY)):
        try:
            parse(body)
        except BadAnswer:
            continue
        assert body[-1:] == b"\n"


def test_a_cosignature_is_checked_and_kept() -> None:
    """The witness's line verifies under its key alone, and stands in the note from then on."""
    signature, cosignature = parse_cosignature_lines(line(), NOTE, WITNESS_KEY)
    assert (cosignature.name, cosignature.timestamp) == (WITNESS_KEY.name, 1_700_000_000)
    opened = open_checkpoint(cosigned(NOTE, [signature]), KEY, [WITNESS_KEY])
    assert opened.cosignatures == (cosignature,)


def test_the_newest_line_is_taken() -> None:
    """A witness may answer with several lines; others' lines are passed over."""
    stranger = line().replace(WITNESS_KEY.name.encode(), b"stranger")
    signature, cosignature = parse_cosignature_lines(
        line(5) + stranger + line(9) + line(7), NOTE, WITNESS_KEY
    )
    assert cosignature.timestamp == 9
    _, again = parse_cosignature_lines(line(9), NOTE, WITNESS_KEY)
    assert again.timestamp == int.from_bytes(signature.value[:8], "big")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        line(text=Checkpoint(KEY.name, 8, ROOT).text),
        line().replace(b"\n", b""),
        b"\n" + line(),
        b"words\n\n" + line(),
        line() * 70,
        line() + b"x" * MAX_ANSWER_BYTES,
        line().replace(WITNESS_KEY.name.encode(), b"stranger"),
    ],
    ids=["empty", "blank", "other", "cut", "line before", "text", "many", "long", "stranger"],
)
def test_a_wrong_answer_is_refused(body: bytes) -> None:
    """A line that does not verify, or is not this witness's, is no cosignature."""
    with pytest.raises(BadAnswer):
        parse_cosignature_lines(body, NOTE, WITNESS_KEY)


def test_a_newer_cosignature_takes_the_place_of_an_older() -> None:
    """Each key signs a kept note once, and the log's own signature stays first."""
    first, _ = parse_cosignature_lines(line(5), NOTE, WITNESS_KEY)
    second, _ = parse_cosignature_lines(line(6), NOTE, WITNESS_KEY)
    note = parse_note(cosigned(cosigned(NOTE, [first]), [second]))
    assert [item.name for item in note.signatures] == [KEY.name, WITNESS_KEY.name]
    assert open_checkpoint(cosigned(NOTE, [second]), KEY, [WITNESS_KEY]).note == note


def test_a_note_takes_only_so_many() -> None:
    """More signatures than a note may have are refused, not cut."""
    own = Signature.of(KEY, LOG.sign(TEXT.encode()))
    many = [Signature(f"w{number}", own.key_id, own.value) for number in range(64)]
    with pytest.raises(BadNote):
        cosigned(NOTE, many)
