"""The quick check of an entry never takes what the strict parser would not."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.tlog_made import NOW, ORIGIN, call_event, made_entry, rendered
from ironwork_audit import DETAILS, EVENT, INTENT, OUTCOME, Event, NotAnEvent, fields, parse, render
from ironwork_audit.event import from_timestamp, to_timestamp
from ironwork_audit.fields import Flag, Number, Text
from ironwork_audit.ocsf import dump
from ironwork_audit.verify_entry import EntryChecker, Facts, _compile

CHECKER = EntryChecker(ORIGIN)
QUICK = _compile(ORIGIN)


def detail(name: str) -> st.SearchStrategy[Any]:
    match DETAILS[name]:
        case Flag():
            return st.booleans()
        case Number(largest=largest):
            return st.integers(0, largest)
        case Text(pattern=pattern, longest=longest):
            matching = st.from_regex(pattern, fullmatch=True)
            return matching.filter(lambda text: len(text) <= longest)


def visible(longest: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=longest)


@st.composite
def events(draw: st.DrawFn) -> Event:
    phase = draw(st.sampled_from([INTENT, OUTCOME, EVENT]))
    names = draw(st.lists(st.sampled_from(sorted(DETAILS)), unique=True, max_size=4))
    return Event(
        phase=phase,
        operation=draw(
            st.sampled_from(["AddKey", "WithKey", "hsm.unwrap", "auth.refused", "policy.reload"])
        ),
        correlation_id=draw(visible(12).filter(bool)),
        time=draw(st.integers(0, 253_402_300_799_999).map(from_timestamp)),
        principal=draw(st.sampled_from(["", "spiffe://a.test/x", 'spiffe://a.test/"\\'])),
        workspace=draw(st.sampled_from(["", "acme"])),
        key_id=draw(st.sampled_from(["", "k-1"])),
        task=draw(visible(5)),
        peer=draw(
            st.sampled_from(["", "ipv4:1.2.3.4:5", "ipv6:[::1]:443", "unix:/run/a", "ipv4:x"])
        ),
        success=draw(st.sampled_from([None, True, False])),
        reason=draw(st.sampled_from(["", "KEY_EXISTS"])),
        details={name: draw(detail(name)) for name in names},
        intent_index=draw(st.integers(0, 2**63 - 1)) if phase == OUTCOME else None,
    )


def strict(entry: bytes, index: int) -> Facts | None:
    """What the parser says of it."""
    try:
        parsed = parse(entry)
    except NotAnEvent:
        return None
    event = parsed.event
    if parsed.origin != ORIGIN or parsed.sequence != index:
        return None
    return Facts(
        to_timestamp(event.time),
        f"{event.operation} {event.correlation_id}".encode(),
        event.phase == INTENT,
        event.intent_index,
        event.reason,
    )


def quick(entry: bytes, index: int) -> Facts | None:
    try:
        return CHECKER.check(entry, index)
    except NotAnEvent:
        return None


@settings(deadline=None)  # a slow machine is no failure
@given(events(), st.integers(0, 2**63 - 1))
def test_the_quick_check_agrees_on_what_is_written(event: Event, index: int) -> None:
    """Every entry that this log can write is taken, with the facts that the parser gives."""
    entry = rendered(event, index)
    assert quick(entry, index) == strict(entry, index)
    assert quick(entry, index) is not None
    assert quick(entry, index + 1) is None


PARTS = [
    *(b'"', b"\\", b"{", b"}", b",", b'"":1,', b"\xe2\x80\xa6", b"\xff", b"0", b"00", b"-1", b" "),
    *(b'"sk-ant-api03-AAAAAAAAAAAAAAAA"', b"sk-ant-api03-AAAAAAAAAAAAAAAA", b"intent", b"outcome"),
    *(b'"phase":"event",', b'"intent_index":3,', b"99999999999999999999", b"::1", b"true", b"1.0"),
    *(b'"task":"t","task":"t"', b"spiffe://", b'"name"', b"acme", b"globex", b"x" * 300, b"\n"),
]


@settings(deadline=None, max_examples=200)  # a slow machine is no failure
@given(events() | st.just(call_event(9)) | st.just(call_event(9, 8)), st.data())
def test_the_quick_check_takes_nothing_else(event: Event, data: st.DataObject) -> None:
    """Whatever is done to an entry's bytes, the quick check takes it only if the parser does."""
    entry = rendered(event, 9)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(entry)))
        end = min(len(entry), at + data.draw(st.integers(0, 30)))
        part = data.draw(st.sampled_from(PARTS) | st.binary(max_size=3))
        entry = entry[:at] + part + entry[end:]
    assert quick(entry, 9) == strict(entry, 9)


CONTRADICTIONS = [
    (b'"status":"Success"', b'"status":"Failure"'),
    (b'"status_id":1', b'"status_id":2'),
    (b'"activity_id":2', b'"activity_id":4'),
    (b'"activity_name":"Read"', b'"activity_name":"Delete"'),
    (b'"type_uid":600302', b'"type_uid":600304'),
    (b'"severity_id":1', b'"severity_id":2'),
    (b'"name":"ironwork.keys.v1.KeyService"', b'"name":"ironwork.keys.v1.AuditService"'),
    (b'"ip":"10.0.0.1","port":4711', b'"ip":"10.0.0.1","port":70000'),
    (b'"ip":"10.0.0.1","port":4711', b'"ip":"0:0::1","port":4711'),
    (b'"ip":"10.0.0.1","port":4711', b'"ip":"::ffff:a00:1","port":4711'),
    (b'"ip":"10.0.0.1","port":4711', b'"name":"ipv4:10.0.0.1:4711"'),
    (b'"ip":"10.0.0.1","port":4711', b'"name":""'),
    (b'"status":"Success"', b'"status":"Success","status_detail":""'),
    (b'"WithKey"', b'"auth.refused"'),
]


@pytest.mark.parametrize(("old", "new"), CONTRADICTIONS)
def test_members_that_contradict_each_other_are_no_entry(old: bytes, new: bytes) -> None:
    """Whatever is said twice is said alike, and each value is written in one way."""
    event = call_event(9, 8, success=True, peer="ipv4:10.0.0.1:4711", reason="")
    entry = rendered(event, 9)
    assert old in entry
    assert quick(entry, 9) is not None
    assert quick(entry.replace(old, new), 9) is None
    assert strict(entry.replace(old, new), 9) is None


def leaves(document: Any, path: str = "") -> dict[str, Any]:
    """Every value of an entry by its place."""
    if not isinstance(document, dict | list):
        return {path: document}
    items = document.items() if isinstance(document, dict) else enumerate(document)
    found: dict[str, Any] = {}
    for name, value in items:
        found |= leaves(value, f"{path}/{name}" if path else str(name))
    return found


calls = st.builds(
    call_event,
    st.just(9),
    st.just(8),
    operation=st.sampled_from(["AddKey", "DeleteKey", "WithKey", "hsm.unwrap"]),
    success=st.sampled_from([None, True, False]),
    peer=st.sampled_from(["", "ipv4:1.2.3.4:5", "ipv6:[::1]:443", "unix:/run/a"]),
    reason=st.sampled_from(["", "KEY_EXISTS"]),
)


@settings(deadline=None)  # a slow machine is no failure
@given(calls, calls, st.data())
def test_what_is_taken_is_what_render_makes(one: Event, other: Event, data: st.DataObject) -> None:
    """An entry with a value of another in its place is taken only where it is its event's own."""
    document, values = json.loads(rendered(one, 9)), leaves(json.loads(rendered(other, 9)))
    place = data.draw(st.sampled_from(sorted(leaves(document))))
    put(document, place, values.get(place) or data.draw(st.sampled_from(list(values.values()))))
    entry = dump(document)
    if quick(entry, 9) is not None:
        parsed = parse(entry)
        assert entry == render(
            parsed.event,
            origin=ORIGIN,
            sequence=9,
            logged_time=parsed.logged_time,
            kind=parsed.kind,
        )
    assert quick(entry, 9) == strict(entry, 9)


@settings(deadline=None)  # a slow machine is no failure
@given(st.sampled_from(sorted(DETAILS)), st.text(max_size=6) | st.integers() | st.booleans())
def test_values_of_every_detail(name: str, value: str | int) -> None:
    """A detail's value that its rule refuses is not taken by the quick check either."""
    entry = made_entry(3)
    text = f'"{value}"' if isinstance(value, str) else str(value).lower()
    entry = entry.replace(b'"method":"POST"', f'"{name}":{text}'.encode())
    assert quick(entry, 3) == strict(entry, 3)


def test_no_number_is_written_in_two_ways() -> None:
    """A leading zero in the first number, too, is not taken by the quick check."""
    entry = made_entry(3).replace(b'"activity_id":', b'"activity_id":0', 1)
    assert quick(entry, 3) is None
    assert strict(entry, 3) is None


def test_calls_take_the_quick_way() -> None:
    """What makes up nearly all of a log, calls and their HSM operations, needs no parser."""
    unwrap = call_event(
        5,
        operation="hsm.unwrap",
        details={"backend": "pkcs11:token=ironwork;object=mk", "mechanism": "AES-GCM"},
    )
    local = call_event(5, principal="", peer="", workspace="", key_id="", role="")
    six = call_event(5, peer="ipv6:[2001:db8::1]:443")
    for entry in (made_entry(3), made_entry(4), *(rendered(e, 5) for e in (unwrap, local, six))):
        assert QUICK.fullmatch(entry), entry


@pytest.mark.parametrize(
    ("index", "entry"),
    [
        (4, made_entry(5)),
        (5, made_entry(5).replace(b"keys.test/a", b"keys.test/b")),
        (5, made_entry(5).replace(b"acme", b"sk-ant-api03-AAAAAAAAAAAAAAAA")),
        (5, made_entry(5)[:-1]),
        (5, b"{}"),
        (5, b""),
    ],
)
def test_foreign_entries(index: int, entry: bytes) -> None:
    """Another index, another log's origin, a credential, or no entry at all: refused."""
    with pytest.raises(NotAnEvent):
        CHECKER.check(entry, index)


def test_times_far_away_are_left_to_the_parser() -> None:
    """Times beyond the quick check's digits are read all the same."""
    event = call_event(5, time=NOW + timedelta(days=365 * 5000))
    assert CHECKER.check(rendered(event, 5), 5).time_ms == to_timestamp(event.time)


def put(document: Any, path: str, value: object) -> None:
    *parents, last = path.split("/")
    for name in parents:
        document = document[int(name)] if isinstance(document, list) else document[name]
    document[last] = value


# Every value of an entry, by its place, with those that must say the same.
PLACES: dict[str, tuple[Text | Number | Flag, tuple[str, ...]]] = {
    "principal": (fields.PRINCIPAL, ("actor/user/uid",)),
    "operation": (fields.OPERATION, ("metadata/event_code", "api/operation")),
    "correlation": (fields.CORRELATION_ID, ("metadata/correlation_uid",)),
    "workspace": (fields.WORKSPACE, ("metadata/tenant_uid", "resources/0/uid")),
    "key": (fields.KEY_ID, ("resources/1/uid",)),
    "reason": (fields.REASON, ("status_detail",)),
    "peer": (fields.PEER, ("src_endpoint/name",)),
    "sequence": (fields.SEQUENCE, ("metadata/sequence",)),
    "intent": (fields.SEQUENCE, ("unmapped/intent_index",)),
    "role": (fields.ROLE, ("unmapped/role",)),
    "task": (fields.CLAIM, ("unmapped/task",)),
    "agent": (fields.CLAIM, ("unmapped/agent",)),
    **{name: (rule, (f"unmapped/{name}",)) for name, rule in DETAILS.items()},
}


def at_the_bounds(rule: Text | Number | Flag) -> list[object]:
    """Values on both sides of each of a rule's bounds."""
    match rule:
        case Number(largest=largest):
            return [-1, 0, 9, largest // 10, largest, largest + 1, largest * 10, True, "1", 1.0]
        case Flag():
            return [True, False, 0, 1, 2, "true"]
        case Text(longest=longest):
            fills = [character * length for character in "aA1 .!é" for length in (1, longest)]
            beyond = [character * (longest + 1) for character in "aA1 "]
            masks = [f"sk-ant-{'a' * n}…{'w' * m}" for n in (1, 8, 9) for m in (3, 4, 5)]
            return ["", *fills, *beyond, *masks, "a\\b", 'a"b', "a\nb", "a\x7f", 1]


@pytest.mark.parametrize("name", PLACES)
def test_every_value_at_its_bounds(name: str) -> None:
    """The quick check's bounds are the rules': the longest, the largest, the empty, one more."""
    rule, paths = PLACES[name]
    event = call_event(9, 8, reason="KEY_EXISTS", peer="unix:/run/a")
    for value in at_the_bounds(rule):
        document = json.loads(rendered(event, 9))
        for path in paths:
            put(document, path, value)
        entry = dump(document)
        assert quick(entry, 9) == strict(entry, 9), value
