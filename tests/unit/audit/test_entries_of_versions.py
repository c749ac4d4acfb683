"""An entry stays valid for ever: what its operation is shown as is read from the entry."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.tlog_made import NOW, ORIGIN, call_event
from ironwork_audit import NotAnEvent, classes, parse, render, verify_entry
from ironwork_audit.classes import (
    ACTIVITIES,
    API_ACTIVITY,
    AUTHENTICATION,
    BY_AREA,
    BY_OPERATION,
    ENTITY_MANAGEMENT,
    KEY_SERVICE,
    Kind,
    kind_of,
)
from ironwork_audit.event import INTENT, to_timestamp
from ironwork_audit.fields import FieldRefused
from ironwork_audit.ocsf import dump
from ironwork_audit.verify_entry import EntryChecker

VERSIONS = sorted((Path(__file__).parents[2] / "vectors" / "audit-entries").glob("*.jsonl"))
CHECKER = EntryChecker(ORIGIN)
AddRows = Callable[[Mapping[str, Kind], Mapping[str, Kind]], None]


@pytest.fixture
def add_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[AddRows]:
    """Has the tables of a version that knows more operations."""

    def add(operations: Mapping[str, Kind], areas: Mapping[str, Kind]) -> None:
        # A row that is there is never changed.
        monkeypatch.setattr(
            classes, "BY_OPERATION", MappingProxyType({**operations, **BY_OPERATION})
        )
        monkeypatch.setattr(classes, "BY_AREA", MappingProxyType({**areas, **BY_AREA}))
        verify_entry._is_kind.cache_clear()

    yield add
    monkeypatch.undo()
    verify_entry._is_kind.cache_clear()


def taken(entry: bytes, index: int) -> bool:
    """Whether it is an entry, for which both ways of reading it agree."""
    try:
        strict = parse(entry)
    except NotAnEvent:
        with pytest.raises(NotAnEvent):
            CHECKER.check(entry, index)
        return False
    facts = CHECKER.check(entry, index)
    event = strict.event
    assert facts.time_ms == to_timestamp(event.time)
    assert facts.call == f"{event.operation} {event.correlation_id}".encode()
    assert facts.is_intent is (event.phase == INTENT)
    assert (facts.intent_index, facts.reason) == (event.intent_index, event.reason)
    return True


def shown(operation: str, kind: Kind | None) -> bytes:
    event = call_event(9, operation=operation)
    return render(event, origin=ORIGIN, sequence=9, logged_time=NOW, kind=kind)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.stem)
def test_entries_of_every_version_stand(version: Path) -> None:
    """What a version wrote, each operation, each field at its bounds, is an entry in this one."""
    lines = version.read_bytes().splitlines()
    assert len(lines) > 200
    for index, entry in enumerate(lines):
        assert taken(entry, index), entry
        assert not taken(entry.replace(b'"status"', b'"Status"'), index)


OPERATIONS = sorted(json.loads(line)["metadata"]["event_code"] for line in (
    VERSIONS[0].read_bytes().splitlines()
))  # fmt: skip
services = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", fullmatch=True)
entities = st.tuples(st.from_regex(r"[a-z][a-z ]{0,63}", fullmatch=True), st.integers(0, 99))


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    """Anything that an operation may be shown as, in any version."""
    class_uid = draw(st.sampled_from(sorted(ACTIVITIES)))
    activity = draw(st.sampled_from(sorted(ACTIVITIES[class_uid])))
    if class_uid == ENTITY_MANAGEMENT:
        return Kind(class_uid, activity, "", draw(entities))
    return Kind(class_uid, activity, draw(services))


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(st.sampled_from(OPERATIONS), kinds(), min_size=1),
    st.dictionaries(st.sampled_from(["break_glass", "witness", "journal2"]), kinds()),
)
def test_rows_can_be_added(
    add_rows: AddRows, operations: dict[str, Kind], areas: dict[str, Kind]
) -> None:
    """A row for an operation, or for an area, takes no entry away that was written before it."""
    add_rows(operations, areas)
    prefixes = tuple(f"{area}." for area in areas)
    for version in VERSIONS:
        for index, entry in enumerate(version.read_bytes().splitlines()):
            operation = json.loads(entry)["metadata"]["event_code"]
            if operation in operations or operation.startswith(prefixes):
                assert taken(entry, index)


@settings(deadline=None)  # a slow machine is no failure
@given(st.sampled_from(["Attest", "break_glass.copy", "store.checked"]), kinds())
def test_an_operation_of_a_newer_version_is_read(operation: str, kind: Kind) -> None:
    """An operation that this version has no row for may be shown as anything of the right form."""
    entry = shown(operation, kind)
    assert taken(entry, 9)
    assert parse(entry).kind == kind


@settings(deadline=None)  # a slow machine is no failure
@given(st.sampled_from([*BY_OPERATION, "auth.refused", "policy.reload", "hsm.wrap"]), kinds())
def test_what_is_known_is_shown_truly(operation: str, kind: Kind) -> None:
    """No known operation is shown as another's class, nor one with a row as another activity."""
    named, today = operation in BY_OPERATION, kind_of(operation)
    same = kind == today if named else kind.class_uid == today.class_uid
    assert taken(shown(operation, kind), 9) is same
    assert taken(shown(operation, today), 9)


def test_less_may_be_said_of_an_operation() -> None:
    """What has a row may stand there as before there was one: as its area, or as Other."""
    assert taken(shown("hsm.generate", BY_AREA["hsm"]), 9)
    assert taken(shown("DeleteKey", kind_of("x")), 9)
    assert not taken(shown("DeleteKey", BY_OPERATION["ListMasked"]), 9)


FORMS: list[tuple[str, str, Any]] = [
    ("Attest", "activity_name", "Delete"),
    ("Attest", "activity_name", None),
    ("Attest", "activity_id", 98),
    ("Attest", "activity_id", True),
    ("Attest", "type_uid", 600304),
    ("Attest", "category_uid", 3),
    ("Attest", "class_uid", 6005),
    ("Attest", "severity_id", 3),
    ("Attest", "api", {"operation": "Attest", "service": {"name": ""}}),
    ("Attest", "api", {"operation": "Attest", "service": {"name": "a" * 65}}),
    ("Attest", "api", {"operation": "Attest", "service": {"name": "a\nb"}}),
    ("Attest", "api", {"operation": "Attest", "service": {"name": ["a"]}}),
    ("Attest", "api", {"operation": "Attest", "service": {"name": "sk-ant-api03-AAAAAAAAAAAA"}}),
    ("Attest", "api", {"operation": "Attest", "service": {}}),
    ("policy.reload", "entity", {"name": "Policy", "type_id": 5}),
    ("policy.reload", "entity", {"name": "policy", "type_id": 100}),
    ("policy.reload", "entity", {"name": "policy", "type_id": True}),
    ("policy.reload", "entity", {"name": "policy", "type_id": "5"}),
    ("policy.reload", "entity", {"name": "policy"}),
    ("policy.reload", "activity_id", 2),
    ("auth.refused", "service", {"name": "two words"}),
    ("auth.refused", "service", {}),
    ("auth.refused", "activity_name", "Logoff"),
]


@pytest.mark.parametrize(("operation", "member", "value"), FORMS)
def test_the_form_is_kept(operation: str, member: str, value: object) -> None:
    """Whatever says what an operation is shown as has a form, and agrees with the rest."""
    entry = shown(operation, None)
    assert taken(entry, 9)
    assert not taken(dump(json.loads(entry) | {member: value}), 9)


WRONG: list[tuple[Any, ...]] = [
    (6004, (1, "Create"), "a"),
    (API_ACTIVITY, (1, "Delete"), "a"),
    (API_ACTIVITY, (1, "Create"), ""),
    (API_ACTIVITY, (1, "Create"), "a b"),
    (API_ACTIVITY, (1, "Create"), "a", ("policy", 5)),
    (AUTHENTICATION, (3, "Update"), KEY_SERVICE),
    (ENTITY_MANAGEMENT, (3, "Update"), "a", ("policy", 5)),
    (ENTITY_MANAGEMENT, (3, "Update"), ""),
    (ENTITY_MANAGEMENT, (3, "Update"), "", ("Policy", 5)),
    (ENTITY_MANAGEMENT, (3, "Update"), "", ("policy", -1)),
]


@pytest.mark.parametrize("members", WRONG)
def test_a_row_of_another_form_cannot_be_made(members: tuple[Any, ...]) -> None:
    """A table's row that entries could not be read back from is refused when it is written."""
    with pytest.raises(FieldRefused):
        Kind(*members)
