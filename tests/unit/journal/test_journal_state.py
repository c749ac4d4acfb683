"""What the entries imply, told from their bytes as from what they say."""

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_audit import EVENT, INTENT, OUTCOME, Event, parse, render
from ironwork_server.journal.state import LogState

NOW = datetime(2026, 11, 23, tzinfo=UTC)
# Values that look like members, where a field may hold them.
TRICKS = st.sampled_from(
    [
        "x",
        '"phase":"intent"',
        '","phase":"outcome"',
        '"intent_index":0,"phase":"outcome"',
        '"event_code":"DeleteKey"',
        '"status_detail":"STORE_UNDECIDED"',
        "phase",
    ]
)
KEYS = st.sampled_from(["", "k-1", "k-2"])


@st.composite
def events(draw: st.DrawFn) -> Event:
    phase = draw(st.sampled_from([INTENT, OUTCOME, EVENT]))
    tricky = TRICKS.map(lambda text: text[:64])
    return Event(
        phase=phase,
        operation=draw(
            st.sampled_from(
                ["DeleteKey", "key.deleted", "journal.unfinished", "AddKey", "auth.refused"]
            )
        ),
        correlation_id=draw(tricky),
        time=NOW,
        principal=draw(tricky | st.just("")),
        workspace=draw(st.sampled_from(["", "acme", "globex"])),
        key_id=draw(KEYS),
        task=draw(tricky),
        agent=draw(tricky),
        success=draw(st.sampled_from([None, True, False])),
        reason=draw(st.sampled_from(["", "STORE_UNDECIDED", "NOT_FOUND"])),
        details=draw(
            st.dictionaries(
                st.sampled_from(["display_name", "request_id", "policy_version", "witness"]),
                tricky,
                max_size=3,
            )
        ),
        intent_index=draw(st.integers(0, 12)) if phase == OUTCOME else None,
    )


def told(entries: list[Event]) -> tuple[list[int], dict[int, int], set[tuple[str, str]]]:
    """By what the entries say, one after the other."""
    unfinished: dict[int, None] = {}
    undecided: dict[int, int] = {}
    deleted: set[tuple[str, str]] = set()
    for index, event in enumerate(entries):
        if event.phase == INTENT:
            unfinished[index] = None
            if event.operation == "DeleteKey":
                undecided[index] = index
        elif event.intent_index is not None:
            unfinished.pop(event.intent_index, None)
            undecided.pop(event.intent_index, None)
            if event.reason == "STORE_UNDECIDED" and event.key_id:
                undecided[event.intent_index] = index
        elif event.operation == "journal.unfinished":
            unfinished.clear()
        ended = event.operation == "DeleteKey" and event.phase == OUTCOME
        if event.success and (ended or event.operation == "key.deleted"):
            deleted.add((event.workspace, event.key_id))
    return list(unfinished), undecided, deleted


@settings(deadline=None)  # a slow machine is no failure
@given(st.lists(events(), max_size=12))
def test_the_state_is_what_the_entries_say(entries: list[Event]) -> None:
    """Open intents, undecided writes and deleted keys are those that a whole reading of every
    entry gives, whatever the entries' values look like.
    """
    state = LogState()
    for index, event in enumerate(entries):
        entry = render(event, origin="keys.test/a", sequence=index, logged_time=NOW)
        assert parse(entry).event == event
        state.take(index, entry)
    unfinished, undecided, deleted = told(entries)
    assert list(state.unfinished) == unfinished
    assert state.undecided == undecided
    for workspace in ("", "acme", "globex"):
        for key in ("", "k-1", "k-2"):
            assert state.was_deleted(workspace, key) is ((workspace, key) in deleted)
