"""What blobs are bound to, and how they are taken apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_hsm import BlobRejected
from ironwork_hsm.binding import associated_data, fields, wipe
from ironwork_hsm.pkcs11.blob import random_secret, split

BOUND = st.tuples(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.integers(1, 2**32 - 1),
    st.text(st.characters(codec="ascii"), max_size=8),
    st.binary(max_size=8),
)
PARTS = st.lists(st.binary(max_size=6), max_size=4)


def bound(values: tuple[str, int, str, bytes]) -> bytes:
    name, version, mechanism, context = values
    return associated_data(name=name, version=version, mechanism=mechanism, context=context)


@settings(deadline=None)  # a slow machine is no failure
@given(BOUND, BOUND)
def test_associated_data_is_unambiguous(
    first: tuple[str, int, str, bytes], second: tuple[str, int, str, bytes]
) -> None:
    """Two blobs are bound to the same bytes only where all four fields are the same."""
    assert (bound(first) == bound(second)) == (first == second)


@settings(deadline=None)  # a slow machine is no failure
@given(PARTS, PARTS)
def test_fields_are_unambiguous(first: list[bytes], second: list[bytes]) -> None:
    """Two lists of fields give the same bytes only where they are the same."""
    assert (fields(*first) == fields(*second)) == (first == second)


def test_associated_data_is_what_is_documented() -> None:
    """The format is fixed: blobs of today must open tomorrow."""
    assert associated_data(name="n", version=2, mechanism="m", context=b"cc") == (
        b"\0\0\0\x10ironwork-wrap-v1" b"\0\0\0\x01n" b"\0\0\0\x04\0\0\0\x02"
        b"\0\0\0\x01m" b"\0\0\0\x02cc"
    )  # fmt: skip


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(max_size=32))
def test_a_blob_has_one_length_and_one_layout(blob: bytes) -> None:
    """What is whole comes apart into its parts; any other length or layout byte is rejected."""
    if len(blob) == 8 and blob[0] == 1:
        assert split(blob, 1, 3, 4) == [blob[1:4], blob[4:]]
    else:
        with pytest.raises(BlobRejected):
            split(blob, 1, 3, 4)
    assert split(b"\x01" + blob, 1, len(blob)) == [blob]


def test_secrets_are_random_and_can_be_wiped() -> None:
    """Two secrets differ, and a wiped one is zeros in its place."""
    first, second = random_secret(32), random_secret(32)
    assert first != second
    kept = first
    wipe(first)
    assert kept == bytes(32)


def test_more_than_the_kernel_gives_at_once_is_an_error() -> None:
    """A secret that the kernel does not fill is never used."""
    with pytest.raises(OSError, match="error"):
        random_secret(257)
