"""Events as OCSF lines, and back."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_audit import (
    DETAILS,
    EVENT,
    INTENT,
    MAX_ENTRY_BYTES,
    OUTCOME,
    Event,
    FieldRefused,
    NotAnEvent,
    parse,
    render,
    summarize,
)
from ironwork_audit.event import from_timestamp
from ironwork_audit.fields import Flag, Number, Text

NOW = datetime(2026, 11, 23, 12, 0, 0, 123000, UTC)
KEY = Event(
    phase=OUTCOME,
    operation="DeleteKey",
    correlation_id="c-1",
    time=NOW,
    principal="spiffe://ironwork.test/ws/acme/admin",
    role="key-admin",
    workspace="acme",
    key_id="k-1",
    task="rotate",
    agent="ci",
    peer="ipv4:10.0.0.1:4711",
    success=True,
    reason="",
    details={"key_mask": "sk-ant-api…wxyz"},
    intent_index=6,
)

OPERATIONS = ["AddKey", "WithKey", "hsm.unwrap", "auth.refused", "policy.reload", "x.y", "Other"]


def line(event: Event = KEY, sequence: int = 7) -> bytes:
    return render(event, origin="keys.test/a", sequence=sequence, logged_time=NOW)


def visible(longest: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=longest)


def detail(name: str) -> st.SearchStrategy[Any]:
    match DETAILS[name]:
        case Flag():
            return st.booleans()
        case Number(largest=largest):
            return st.integers(0, largest)
        case Text(pattern=pattern, longest=longest):
            matching = st.from_regex(pattern, fullmatch=True)
            return matching.filter(lambda text: len(text) <= longest)


@st.composite
def events(draw: st.DrawFn) -> Event:
    phase = draw(st.sampled_from([INTENT, OUTCOME, EVENT]))
    names = draw(st.lists(st.sampled_from(sorted(DETAILS)), unique=True, max_size=4))
    return Event(
        phase=phase,
        operation=draw(st.sampled_from(OPERATIONS)),
        correlation_id=draw(visible(64).filter(bool)),
        time=draw(st.integers(0, 253_402_300_799_999).map(from_timestamp)),
        principal=draw(visible(60)),
        role=draw(visible(20)),
        workspace=draw(visible(20)),
        key_id=draw(visible(20)),
        task=draw(visible(20)),
        agent=draw(visible(20)),
        peer=draw(
            st.one_of(
                st.just(""),
                st.ip_addresses(v=4).map(lambda ip: f"ipv4:{ip}:{ip.packed[3]}"),
                st.ip_addresses(v=6)
                .filter(lambda ip: ip.ipv4_mapped is None)
                .map(lambda ip: f"ipv6:[{ip}]:443"),
                st.just("unix:/run/a.sock"),
            )
        ),
        success=draw(st.sampled_from([None, True, False])),
        reason=draw(st.sampled_from(["", "KEY_EXISTS"])),
        details={name: draw(detail(name)) for name in names},
        intent_index=draw(st.integers(0, 2**63 - 1)) if phase == OUTCOME else None,
    )


@settings(deadline=None)  # a slow machine is no failure
@given(events(), st.integers(0, 2**63 - 1))
def test_parse_gives_what_render_was_given(event: Event, sequence: int) -> None:
    """Nothing is lost or changed between an event and its entry."""
    entry = render(event, origin="keys.test/a", sequence=sequence, logged_time=NOW)
    parsed = parse(entry)
    assert parsed.event == event
    assert (parsed.origin, parsed.sequence, parsed.logged_time) == ("keys.test/a", sequence, NOW)
    assert b"\n" not in entry


@settings(deadline=None)  # a slow machine is no failure
@given(events())
def test_a_summary_agrees_with_the_whole(event: Event) -> None:
    """The quick reader says the same as the strict one."""
    summary = summarize(line(event))
    assert summary.sequence == 7
    assert summary.origin == "keys.test/a"
    for name in ("phase", "operation", "workspace", "key_id", "principal", "success"):
        assert getattr(summary, name) == getattr(event, name)
    assert summary.intent_index == event.intent_index
    assert summary.time_ms == json.loads(line(event))["time"]


def test_an_api_call_reads_as_a_siem_expects() -> None:
    """The members that a SIEM looks for stand where OCSF puts them."""
    document = json.loads(line())
    assert document["class_uid"] == 6003
    assert document["type_uid"] == 600304
    assert document["activity_name"] == "Delete"
    assert document["status_id"] == 1
    assert document["severity_id"] == 1
    assert document["actor"] == {"user": {"uid": "spiffe://ironwork.test/ws/acme/admin"}}
    assert document["api"] == {
        "operation": "DeleteKey",
        "service": {"name": "ironwork.keys.v1.KeyService"},
    }
    assert document["src_endpoint"] == {"ip": "10.0.0.1", "port": 4711}
    assert document["resources"] == [
        {"type": "workspace", "uid": "acme"},
        {"type": "key", "uid": "k-1"},
    ]
    assert document["metadata"]["sequence"] == 7
    assert document["metadata"]["log_name"] == "keys.test/a"
    assert document["metadata"]["version"] == "1.6.0"
    assert document["unmapped"] == {
        "phase": "outcome",
        "intent_index": 6,
        "role": "key-admin",
        "task": "rotate",
        "agent": "ci",
        "key_mask": "sk-ant-api…wxyz",
    }


@pytest.mark.parametrize(
    ("operation", "class_uid", "activity"),
    [
        ("AddKey", 6003, "Create"),
        ("ListMasked", 6003, "Read"),
        ("WithKey", 6003, "Read"),
        ("ListEntries", 6003, "Read"),
        ("hsm.generate", 6003, "Create"),
        ("hsm.unwrap", 6003, "Other"),
        ("journal.recovered", 6003, "Other"),
        ("something.else", 6003, "Other"),
        ("policy", 6003, "Other"),
        ("auth.refused", 3002, "Logon"),
        ("policy.reload", 3004, "Update"),
        ("certificate.reload", 3004, "Update"),
    ],
)
def test_an_operation_has_its_class_and_activity(
    operation: str, class_uid: int, activity: str
) -> None:
    """Each kind of operation has one class; what no table knows is an API Activity, Other."""
    document = json.loads(line(Event(EVENT, operation, "c", NOW)))
    assert (document["class_uid"], document["activity_name"]) == (class_uid, activity)
    assert document["type_uid"] == class_uid * 100 + document["activity_id"]


def test_a_failed_logon_stands_out() -> None:
    """A peer without a valid identity is of medium severity, other failures of low."""
    refused = Event(EVENT, "auth.refused", "c", NOW, success=False, reason="NO_SPIFFE_ID")
    document = json.loads(line(refused))
    assert document["severity_id"] == 3
    assert document["user"] == {"name": "unidentified"}
    failed = Event(EVENT, "AddKey", "c", NOW, success=False)
    assert json.loads(line(failed))["severity_id"] == 2


@pytest.mark.parametrize(
    ("peer", "endpoint", "back"),
    [
        ("ipv6:%5B::1%5D:50051", {"ip": "::1", "port": 50051}, "ipv6:[::1]:50051"),
        ("ipv6:[::ffff:10.0.0.1]:9", {"ip": "10.0.0.1", "port": 9}, "ipv4:10.0.0.1:9"),
        ("ipv4:10.0.0.1:99999", {"name": "ipv4:10.0.0.1:99999"}, "ipv4:10.0.0.1:99999"),
        ("ipv4:10.0.0.999:1", {"name": "ipv4:10.0.0.999:1"}, "ipv4:10.0.0.999:1"),
        ("unix:/run/x", {"name": "unix:/run/x"}, "unix:/run/x"),
        ("", {"svc_name": "ironwork-server"}, ""),
    ],
)
def test_a_peer_is_an_endpoint(peer: str, endpoint: dict[str, Any], back: str) -> None:
    """A TCP peer is given by address and port, any other by name, none as the service itself."""
    entry = line(Event(EVENT, "AddKey", "c", NOW, peer=peer))
    assert json.loads(entry)["src_endpoint"] == endpoint
    assert parse(entry).event.peer == back


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "o" * 256, "é"])
def test_an_origin_has_its_form(origin: str) -> None:
    """An origin is visible ASCII without spaces and plus signs, as C2SP's checkpoints want it."""
    with pytest.raises(FieldRefused, match="origin"):
        render(KEY, origin=origin, sequence=0, logged_time=NOW)


def test_a_sequence_is_not_negative() -> None:
    """Entries are numbered from 0."""
    with pytest.raises(FieldRefused, match="from 0"):
        render(KEY, origin="o", sequence=-1, logged_time=NOW)


def changed(path: str, value: Any) -> bytes:
    document = json.loads(line())
    *folders, name = path.split(".")
    place = document
    for folder in folders:
        place = place[folder]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        errors="surrogatepass"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("extra", 1),
        ("metadata", None),
        ("metadata", []),
        ("metadata.extra", "x"),
        ("metadata.sequence", "7"),
        ("metadata.sequence", True),
        ("metadata.sequence", -1),
        ("metadata.log_name", ""),
        ("metadata.log_name", 3),
        ("metadata.version", "1.5.0"),
        ("metadata.product", {"name": "Other"}),
        ("metadata.event_code", "AddKey"),
        ("metadata.tenant_uid", "other"),
        ("metadata.tenant_uid", None),
        ("metadata.logged_time", 10**30),
        ("class_uid", 1001),
        ("status_id", 1.0),
        ("status_id", True),
        ("status_id", 99),
        ("time", 1e300),
        ("actor.user.email_addr", "x"),
        ("actor.session", {}),
        ("actor", 3),
        ("api.service.extra", "x"),
        ("api.request", {}),
        ("resources", []),
        ("resources", [{"type": "workspace", "uid": "acme"}, {"type": "key", "uid": 5}]),
        ("resources", [3]),
        ("src_endpoint", {"ip": "10.0.0.1"}),
        ("src_endpoint", {"ip": "nowhere", "port": 1}),
        ("unmapped.phase", "other"),
        ("unmapped.phase", {}),
        ("unmapped.prompt", "hello"),
        ("unmapped.intent_index", "6"),
        ("unmapped.intent_index", None),
        ("unmapped.task", "a\x00b"),
        ("unmapped.display_name", "\ud800"),
    ],
)
def test_parse_takes_nothing_that_render_would_not_write(path: str, value: Any) -> None:
    """A member added, missing, of another type or with another value is no entry of this log."""
    with pytest.raises(NotAnEvent):
        parse(changed(path, value))


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"{" * 5000,
        b"[" * 50_000,
        b'{"metadata":{},"unmapped":{}}',
        b'{"a":NaN}',
        b'{"a":' + b"9" * 5000 + b"}",
        b" " + line(),
        line().replace(b'"status_id":1', b'"status_id":1,"status_id":1'),
        line() + b"\n",
        b'"' + b"x" * MAX_ENTRY_BYTES + b'"',
    ],
)
def test_parse_refuses_what_is_not_canonical(entry: bytes) -> None:
    """One event has one form: other bytes are refused, without quoting them."""
    with pytest.raises(NotAnEvent) as refused:
        parse(entry)
    assert len(str(refused.value)) < 100


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(max_size=200))
def test_reading_foreign_bytes_only_ever_refuses(entry: bytes) -> None:
    """No input makes the readers fail in any other way."""
    for read in (parse, summarize):
        with pytest.raises(NotAnEvent):
            read(entry)


@settings(deadline=None)  # a slow machine is no failure
@given(st.integers(0, len(line()) - 1), st.integers(0, 255))
def test_a_changed_byte_never_breaks_the_readers(place: int, byte: int) -> None:
    """An entry with any byte changed is an entry or refused, nothing else."""
    entry = bytearray(line())
    entry[place] = byte
    for read in (parse, summarize):
        try:
            read(bytes(entry))
        except NotAnEvent:
            continue


def test_the_quick_reader_has_no_use_for_other_types() -> None:
    """A summary's fields have the types that it promises."""
    for path in ("metadata.event_code", "metadata.tenant_uid", "actor.user.uid", "unmapped.phase"):
        with pytest.raises(NotAnEvent):
            summarize(changed(path, 3))
    with pytest.raises(NotAnEvent):
        summarize(changed("unmapped.intent_index", "3"))
