"""When a log's head is signed, and what counts as its signature."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ironwork_audit.publishing import (
    INTERVAL_S,
    LATE_S,
    RETRY_S,
    KeyDiffers,
    Schedule,
    log_key,
    signed_note,
    signed_size,
)
from ironwork_audit.tlog import EMPTY_ROOT, Checkpoint
from ironwork_audit.tlog.signed import SignatureRefused

ORIGIN = "acme.example/one"
PRIVATE = Ed25519PrivateKey.generate()
KEY = log_key(ORIGIN, "ed25519", PRIVATE.public_key().public_bytes_raw())
TEXT = Checkpoint(ORIGIN, 3, EMPTY_ROOT).text


def test_a_checkpoint_is_not_far() -> None:
    """Entries are looked for twice a second, and a device that is back is asked within 5 s."""
    assert INTERVAL_S <= 0.5
    assert max(RETRY_S) <= 5


def test_only_the_logs_own_key_signs_it() -> None:
    """A note is made of a signature that verifies, and read back with the same key only."""
    note = signed_note(TEXT, KEY, PRIVATE.sign(TEXT.encode()))
    assert signed_size(note, KEY) == 3
    assert signed_size(None, KEY) == 0
    other = log_key(ORIGIN, "ed25519", Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    renamed = log_key("acme.example/two", "ed25519", KEY.public)
    for key in (other, renamed):
        with pytest.raises(KeyDiffers):
            signed_size(note, key)
    for wrong in (bytes(64), b"short", PRIVATE.sign(b"another")):
        with pytest.raises(SignatureRefused):
            signed_note(TEXT, KEY, wrong)
    with pytest.raises(KeyDiffers):
        signed_size(b"no note", KEY)


def test_only_what_is_new_is_due() -> None:
    """Nothing is due below the published size, and what came while it was signed is due next."""
    plan = Schedule()
    assert not plan.is_due(0, 1.0)
    assert plan.is_due(2, 1.0)
    plan.size = 2
    plan.succeeded(3, 1.0)
    assert plan.is_due(3, 1.5)
    plan.size = 3
    plan.succeeded(3, 1.5)
    assert not plan.is_due(3, 99.0)
    assert not plan.is_late(99.0)


def test_failures_wait_longer_each_and_are_late_once() -> None:
    """After each failure in a row the pause grows to its last; waiting past the bound is late, and
    over with the next success.
    """
    plan, now = Schedule(), 100.0
    assert plan.is_due(1, now)
    for pause in (*RETRY_S, RETRY_S[-1]):
        plan.failed(now)
        assert plan.failing
        assert not plan.may_try(now + pause - 0.01)
        now += pause
        assert plan.may_try(now)
    plan.failed(now)
    plan.hurry()
    assert plan.may_try(now)
    assert plan.is_late(100.0 + LATE_S + 0.1)
    plan.size = 1
    plan.succeeded(1, now)
    assert not plan.failing
    assert not plan.is_late(now + 1000)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0.01, 8)), max_size=60))
def test_no_entry_waits_unnoticed(steps: list[tuple[int, bool, float]]) -> None:
    """However entries, failures and successes follow: what is not signed is due, late is who waited
    for longer than the bound and nobody else, and nothing signed is ever due again.
    """
    plan, now, due = Schedule(), 0.0, 0
    oldest: float | None = None  # since when something has been seen to wait
    for more, works, pause in steps:
        due += more
        is_due = plan.is_due(due, now)
        assert is_due == (due > plan.size)
        if is_due and oldest is None:
            oldest = now
        assert plan.is_late(now) == (oldest is not None and now - oldest > LATE_S)
        if is_due and plan.may_try(now):
            if works:
                plan.size = due
                plan.succeeded(due, now)
                oldest = None
            else:
                plan.failed(now)
        now += pause
