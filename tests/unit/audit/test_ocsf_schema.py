"""Events against the published OCSF 1.6.0 schema (PyPI ocsf-json-schema, offline)."""

import functools
import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from ironwork_audit import DETAILS, EVENT, INTENT, OUTCOME, Event, render
from ironwork_audit.classes import BY_AREA, BY_OPERATION

NOW = datetime(2026, 11, 23, tzinfo=UTC)
OPERATIONS = sorted([*BY_OPERATION, *(f"{area}.any" for area in BY_AREA), "unknown"])
FULL: dict[str, Any] = {
    "principal": "spiffe://ironwork.test/ws/acme/agent",
    "role": "agent",
    "workspace": "acme",
    "key_id": "0190b5a4-0000-7000-8000-000000000000",
    "task": "issue 17",
    "agent": "coder",
    "peer": "ipv6:%5B2001:db8::1%5D:443",
    "reason": "KEY_EXISTS",
    "details": {"key_mask": "sk-ant-api…wxyz", "http_status": 200, "sent_upstream": True},
}


@functools.cache
def published() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.6.0"))


@functools.cache
def validator(class_uid: int) -> jsonschema.Draft202012Validator:
    name = published().lookup_class_name_from_uid(class_uid=class_uid)
    return jsonschema.Draft202012Validator(
        published().get_class_schema(class_name=name, profiles=[])
    )


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("phase", [INTENT, OUTCOME, EVENT])
@pytest.mark.parametrize("fields", [{}, FULL], ids=["least", "most"])
def test_every_event_is_valid_ocsf(operation: str, phase: str, fields: dict[str, Any]) -> None:
    """Each operation, in each phase, with the least and the most fields, is OCSF 1.6.0."""
    for success in (None, True, False):
        index = 3 if phase == OUTCOME else None
        made = Event(phase, operation, "c-1", NOW, success=success, intent_index=index, **fields)
        entry = json.loads(render(made, origin="keys.test/a", sequence=4, logged_time=NOW))
        validator(entry["class_uid"]).validate(entry)


def test_the_schema_refuses_what_is_not_ocsf() -> None:
    """The check has teeth: a member that OCSF does not know is refused."""
    made = Event(EVENT, "AddKey", "c-1", NOW)
    entry = json.loads(render(made, origin="o", sequence=0, logged_time=NOW))
    with pytest.raises(jsonschema.ValidationError):
        validator(6003).validate(entry | {"api_key": "x"})
    with pytest.raises(jsonschema.ValidationError):
        validator(6003).validate({name: entry[name] for name in entry if name != "actor"})


def test_numbers_of_activities_have_ocsf_s_names() -> None:
    """activity_name is the caption that the published schema gives activity_id."""
    classes = get_ocsf_schema(version="1.6.0")["classes"]
    captions = {
        found["uid"]: found["attributes"]["activity_id"]["enum"]
        for found in classes.values()
        if found.get("uid") in {6003, 3002, 3004}
    }
    for kind in [*BY_OPERATION.values(), *BY_AREA.values()]:
        number, name = kind.activity
        assert captions[kind.class_uid][str(number)]["caption"] == name


def test_details_hide_no_field_of_the_event() -> None:
    """Details stand flat beside our own members of `unmapped`, and none has the same name."""
    assert not DETAILS.keys() & {"phase", "intent_index", "role", "task", "agent", "key_id"}
