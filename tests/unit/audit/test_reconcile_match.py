"""Pairing entries with calls: as many as can be, and each with one."""

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_audit.reconcile.calls import Call
from ironwork_audit.reconcile.match import Slot, fits, match

SLOTS = st.lists(
    st.builds(
        lambda start, length, subject, ok, required: Slot(
            "C_Decrypt", subject, start, start + length, ok, required, 0
        ),
        st.integers(0, 12),
        st.integers(0, 6),
        st.sampled_from(["", "gcm", "cbc"]),
        st.sampled_from([True, None]),
        st.booleans(),
    ),
    max_size=5,
)
CALLS = st.lists(
    st.builds(
        lambda start, subject, ok: Call("C_Decrypt", subject, start, start, ok, "x"),
        st.integers(0, 18),
        st.sampled_from(["", "gcm", "cbc"]),
        st.sampled_from([True, False, None]),
    ),
    max_size=5,
)


def best(slots: list[Slot], calls: list[Call]) -> tuple[int, int]:
    """By trying all: the most required slots that can have a call, then the most calls a slot."""
    places: list[int | None] = [*range(len(calls)), *([None] * len(slots))]
    found = (0, 0)
    for chosen in set(permutations(places, len(slots))):
        pairs = [
            slot
            for slot, call in zip(slots, chosen, strict=True)
            if call is not None and fits(slot, calls[call])
        ]
        found = max(found, (sum(slot.required for slot in pairs), len(pairs)))
    return found


@settings(deadline=None, max_examples=150)
@given(SLOTS, CALLS)
def test_no_pairing_is_better(slots: list[Slot], calls: list[Call]) -> None:
    """Each with one that fits it; no other pairing gives more required entries their call, and
    none of those more calls an entry.
    """
    slots, calls = slots[:4], calls[:4]
    matched = match(slots, calls)
    for index, call in enumerate(matched.calls):
        if call is not None:
            assert matched.slots[call] == index
            assert fits(slots[index], calls[call])
    assert sum(at is not None for at in matched.calls) == sum(
        at is not None for at in matched.slots
    )
    required = sum(
        slot.required for slot, call in zip(slots, matched.calls, strict=True) if call is not None
    )
    assert (required, sum(at is not None for at in matched.calls)) == best(slots, calls)


def test_many_that_overlap() -> None:
    """Ten thousand that overlap are paired; one too many and one too few are each found."""
    slots = [Slot("C_Decrypt", "gcm", at, at + 50, True, True, at) for at in range(10_000)]
    calls = [Call("C_Decrypt", "gcm", at + 20, at + 20, True, str(at)) for at in range(10_000)]
    matched = match(slots, calls)
    assert None not in matched.calls
    assert None not in matched.slots
    more = match(slots, [*calls, calls[5000]])
    assert more.slots.count(None) == 1
    fewer = match(slots, calls[:5000] + calls[5001:])
    assert fewer.calls.count(None) == 1
