"""What an event may hold: the allow list and its bounds."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_audit import DETAILS, EVENT, INTENT, OUTCOME, Event, FieldRefused, fits, render
from ironwork_audit.fields import Number, Text

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, UTC)
CANARY = "sk-ant-api03-canary-0123456789-abcdefghijklmnop"

# What an event's JSON may hold at all, anywhere.
MEMBERS = {
    *("activity_id", "activity_name", "actor", "api", "app_name", "auth_protocol"),
    *("auth_protocol_id", "category_uid", "class_uid", "correlation_uid", "entity", "event_code"),
    *("ip", "is_remote", "log_name", "logged_time", "metadata", "name", "operation", "port"),
    *("product", "resources", "sequence", "service", "severity_id", "src_endpoint", "status"),
    *("status_detail", "status_id", "svc_name", "tenant_uid", "time", "type", "type_id"),
    *("type_uid", "uid", "unmapped", "user", "vendor_name", "version"),
    *("phase", "intent_index", "role", "task", "agent", "key_id"),
    *DETAILS,
}


def event(**changes: Any) -> Event:
    values: dict[str, Any] = {
        "phase": EVENT,
        "operation": "AddKey",
        "correlation_id": "c-1",
        "time": NOW,
    }
    return Event(**(values | changes))


def members(document: object) -> set[str]:
    if isinstance(document, dict):
        return set(document).union(*map(members, document.values()))
    if isinstance(document, list):
        return set().union(*map(members, document))
    return set()


@pytest.mark.parametrize("name", ["api_key", "x-api-key", "body", "fingerprint", "path", "phase"])
def test_a_detail_off_the_list_is_refused(name: str) -> None:
    """A detail's name is on the list, or there is no event; the refusal repeats neither part."""
    with pytest.raises(FieldRefused) as refused:
        event(details={name: CANARY})
    assert CANARY not in str(refused.value)
    assert name not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("route", "m" * 65),
        ("route", "messages\n"),
        ("route", 3),
        ("anthropic_request_id", "req_\x7f"),
        ("display_name", "a\x00b"),
        ("display_name", "a\u2028b"),
        ("display_name", "\ud800"),
        ("http_status", "200"),
        ("http_status", -1),
        ("http_status", 1000),
        ("http_status", True),
        ("input_tokens", 2**63),
        ("sent_upstream", 2),
        ("sent_upstream", "true"),
        ("key_mask", "sk-ant-api…toolong"),
        ("key_mask", "sk-ant-api03-abcd"),
        ("key_mask", "sk-ant-abcdefghijkl…wxyz"),  # a mask is shorter than a credential
        ("verdict", "some text"),
    ],
)
def test_a_detail_that_does_not_fit_its_rule_is_refused(name: str, value: Any) -> None:
    """Every detail has a type, a form and a bound; what does not fit makes no event."""
    with pytest.raises(FieldRefused, match=name):
        event(details={name: value})
    assert not fits(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_mask", "sk-ant-api…wxyz"),
        ("sent_upstream", True),
        ("sent_upstream", 0),
        ("display_name", "Schlüssel für CI 🔑"),
        ("http_status", 529),
        ("previous_organizations", "org-1,org-2"),
    ],
)
def test_a_detail_that_fits_is_kept(name: str, value: Any) -> None:
    """What fits stands in the event as it was given."""
    assert fits(name, value)
    assert event(details={name: value}).details[name] == value


def test_asking_whether_an_unlisted_detail_fits_is_an_error() -> None:
    """A name off the list is the code's mistake, not a value that may be left out."""
    with pytest.raises(FieldRefused):
        fits("prompt", "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "before"},
        {"operation": ""},
        {"operation": "Add Key"},
        {"operation": "A" * 65},
        {"correlation_id": ""},
        {"principal": "spiffe://a/\n"},
        {"principal": "s" * 2049},
        {"role": "r" * 65},
        {"workspace": "a b"},
        {"key_id": "é"},
        {"task": "t" * 129},
        {"agent": "\x1b[0m"},
        {"peer": "p" * 257},
        {"reason": "Because it said so"},
        {"success": 1},
        {"time": NOW.replace(tzinfo=None)},
        {"time": datetime(1969, 12, 31, tzinfo=UTC)},
        {"phase": INTENT, "intent_index": 1},
        {"phase": OUTCOME},
        {"phase": OUTCOME, "intent_index": -1},
        {"phase": OUTCOME, "intent_index": True},
        {"workspace": None},
    ],
)
def test_every_field_is_checked(changes: dict[str, Any]) -> None:
    """No field of an event takes a value outside its rule."""
    with pytest.raises(FieldRefused):
        event(**changes)


@pytest.mark.parametrize("field", ["principal", "workspace", "key_id", "task", "agent", "peer"])
def test_a_credential_gets_in_by_no_field(field: str) -> None:
    """What looks like an Anthropic credential is refused wherever it was typed, and not echoed."""
    with pytest.raises(FieldRefused, match="credential") as refused:
        event(**{field: CANARY})
    assert CANARY not in str(refused.value)


def test_a_credential_gets_in_by_no_detail() -> None:
    """No detail that takes a string of its length takes the canary key."""
    for name, rule in DETAILS.items():
        if isinstance(rule, Text):
            assert not fits(name, CANARY), name


@settings(deadline=None)  # a slow machine is no failure
@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(DETAILS)), st.text(max_size=12)),
        st.one_of(st.text(max_size=80), st.integers(), st.booleans(), st.binary(), st.none()),
        max_size=4,
    ),
    st.sampled_from(["AddKey", "auth.refused", "policy.reload", "hsm.unwrap", "what.ever"]),
)
def test_whatever_is_passed_an_event_holds_listed_fields_only(
    details: dict[str, Any], operation: str
) -> None:
    """Canary: over any details at all, an entry's members are those of the list and no other."""
    try:
        made = event(operation=operation, details=details, workspace="acme", key_id="k")
    except FieldRefused:
        return
    entry = render(made, origin="o", sequence=1, logged_time=NOW)
    assert members(json.loads(entry)) <= MEMBERS


def test_the_caller_cannot_change_an_event_afterwards() -> None:
    """Details are copied: what is added to the caller's dict later does not get in unchecked."""
    details: dict[str, str | int] = {"count": 1}
    made = event(details=details)
    details["prompt"] = "hello"
    assert dict(made.details) == {"count": 1}
    with pytest.raises(TypeError):
        made.details["prompt"] = "hello"  # type: ignore[index] # that it fails is the test


def test_times_are_utc_milliseconds() -> None:
    """OCSF's timestamps are milliseconds; an event is equal to what is read back of it."""
    berlin = timezone(timedelta(hours=1))
    made = event(time=datetime(2026, 11, 23, 13, 0, 0, 123456, berlin))
    assert made.time == datetime(2026, 11, 23, 12, 0, 0, 123000, UTC)
    assert made.time.tzinfo is UTC


def test_the_largest_event_is_under_24_kib() -> None:
    """The bounds together keep an event small enough for 64 of them to fit a commit of 2 MiB."""
    details: dict[str, str | int] = {}
    for name, rule in DETAILS.items():
        if isinstance(rule, Text):
            # The character that takes the most bytes in JSON, of those that the rule takes.
            for char in ('"', "🔑", "-", "9", "A", "_"):
                if fits(name, char * rule.longest):
                    details[name] = char * rule.longest
                    break
        else:
            details[name] = rule.largest if isinstance(rule, Number) else True
    assert len(details) == len(DETAILS) - 1  # a mask has one form
    made = event(
        phase=OUTCOME,
        operation="x" * 64,
        correlation_id='"' * 64,
        principal='"' * 2048,
        role='"' * 64,
        workspace='"' * 128,
        key_id='"' * 128,
        task='"' * 128,
        agent='"' * 128,
        peer='"' * 256,
        reason="R" * 64,
        success=False,
        details=details,
        intent_index=2**63 - 1,
    )
    entry = render(made, origin='"' * 255, sequence=2**63 - 1, logged_time=NOW)
    assert len(entry) < 24 * 1024
