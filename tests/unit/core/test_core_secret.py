"""What a Secret shows: nothing. What wiping leaves: nothing."""

import copy
import json
import pickle
from dataclasses import dataclass

import pytest

from ironwork_server.core.secret import Secret, wipe

TEXT = b"sk-ant-api03-plaintext"


def test_reveals_what_it_was_given() -> None:
    """A secret lends exactly the bytes that it was made from."""
    assert bytes(Secret(TEXT).reveal()) == TEXT
    assert len(Secret(TEXT)) == len(TEXT)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_keeps_a_copy_of_its_own(make: type) -> None:
    """A secret's bytes are its own: wiping the source does not change it, nor the other way."""
    source = bytearray(TEXT)
    secret = Secret(make(source))
    wipe(source)
    assert bytes(secret.reveal()) == TEXT


def test_lends_read_only() -> None:
    """A borrower cannot change a secret."""
    with pytest.raises(TypeError):
        Secret(TEXT).reveal()[0] = 1


def test_shows_itself_nowhere() -> None:
    """repr, str, format and a container's repr hold nothing of a secret, not even its length."""

    @dataclass
    class Holder:
        secret: Secret

    secret = Secret(TEXT)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", f"{secret!r}", "%s" % secret]  # noqa: UP031 - this spelling, too
    shown += [repr([secret]), repr(Holder(secret))]
    for text in shown:
        assert "Secret(…)" in text
        assert "plaintext" not in text
        assert "22" not in text


@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        hash,
        bytes,
        list,
        json.dumps,
        lambda secret: secret == secret,  # noqa: PLR0124 - the comparison is what is refused
        lambda secret: secret != b"",
        lambda secret: secret.__dict__,
    ],
)
def test_cannot_be_copied_or_compared(leak: object) -> None:
    """Whatever would copy, keep or compare the plaintext by accident is an error."""
    with pytest.raises((TypeError, AttributeError)) as caught:
        leak(Secret(TEXT))
    assert "plaintext" not in str(caught.value)


def test_its_owner_wipes_it() -> None:
    """Leaving the owner's block overwrites the bytes, also those lent, and an error passes."""
    secret = Secret(TEXT)
    lent = secret.reveal()
    with pytest.raises(LookupError), secret:
        raise LookupError
    assert bytes(lent) == bytes(len(TEXT))
    secret.wipe()
    assert bytes(secret.reveal()) == bytes(len(TEXT))


@pytest.mark.parametrize("length", [0, 1, 32, 100_000])
def test_wipes_in_place(length: int) -> None:
    """wipe overwrites a buffer where it is, whole, even while a view of it is lent."""
    buffer = bytearray(b"x" * length)
    with memoryview(buffer) as view:
        wipe(buffer)
        assert bytes(view) == bytes(length)
    part = bytearray(b"abcdef")
    wipe(memoryview(part)[2:4])
    assert part == b"ab\0\0ef"


def test_refuses_what_it_cannot_wipe() -> None:
    """A read-only view is an error: nothing is called wiped that is not."""
    with pytest.raises(TypeError):
        wipe(memoryview(b"constant"))
