"""Whom the policies could ever permit something: known before a request is read."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_server.access.policy import CedarPolicy, write_default_policies
from ironwork_server.access.policy_files import PolicyText
from ironwork_server.access.policy_scopes import Scope, scopes_of
from ironwork_server.core.values import Action, Principal

EXPIRES = datetime(2100, 1, 1, tzinfo=UTC)
WORKSPACES = ("acme", "globex", None)
ROLES = ("key-admin", "agent", "auditor")
ID = "spiffe://a.test/x"

PRINCIPALS = (
    "principal",
    'principal in Ironwork::Role::"agent"',
    f'principal == Ironwork::Principal::"{ID}"',
    f'principal in Ironwork::Principal::"{ID}"',
    "principal is Ironwork::Principal",
    'principal is Ironwork::Principal in Ironwork::Role::"agent"',
)
ACTIONS = (
    "action",
    'action == Ironwork::Action::"DeleteKey"',
    'action in Ironwork::Action::"DeleteKey"',
    'action in [Ironwork::Action::"DeleteKey", Ironwork::Action::"AddKey"]',
    "action in []",
)
RESOURCES = ("resource", 'resource == Ironwork::Workspace::"globex"')
ENDS = ("", f'when {{ principal.spiffe_id like "{ID}*" }}', "unless { principal has workspace }")

policies = st.builds(
    "{} ({}, {}, {}) {};".format,
    st.sampled_from(["permit", "permit", "forbid"]),
    *(st.sampled_from(parts) for parts in (PRINCIPALS, ACTIONS, RESOURCES, ENDS)),
)
principals = st.builds(
    Principal,
    st.sampled_from([ID, "spiffe://a.test/y"]),
    st.sampled_from(ROLES),
    st.sampled_from(WORKSPACES),
    st.just(EXPIRES),
)


@settings(deadline=None)  # a slow machine is no failure
@given(st.lists(policies, min_size=1, max_size=3), principals, st.sampled_from(list(Action)))
def test_nobody_is_ruled_out_who_is_permitted_something(
    texts: list[str], principal: Principal, action: Action
) -> None:
    """Whatever is permitted on any workspace, or on the log, could be permitted."""
    policy = CedarPolicy([PolicyText("", text) for text in texts], "v")
    if any(policy.permits(principal, action, workspace) for workspace in WORKSPACES):
        assert policy.may_ever(principal, action)


@pytest.mark.parametrize("role", ROLES)
def test_the_roles_are_ruled_out_of_what_is_others(role: str, tmp_path: Path) -> None:
    """By the shipped policies a role could have its own actions and no others."""
    write_default_policies(tmp_path)
    policy = CedarPolicy.load(tmp_path)
    principal = Principal(ID, role, "acme", EXPIRES)
    own = {
        "key-admin": {Action.ADD_KEY, Action.LIST_MASKED, Action.DELETE_KEY},
        "agent": {Action.WITH_KEY},
        "auditor": {Action.READ_AUDIT},
    }
    assert {action for action in Action if policy.may_ever(principal, action)} == own[role]


def test_a_policy_that_is_too_long_to_look_at_fits_everybody() -> None:
    """A condition that the reading of scopes cannot go through rules nobody out."""
    text = f"permit (principal, action, resource) when {{ {'true&&' * 2000}true }};"
    assert scopes_of([text]) == (Scope(None, None),)


@pytest.mark.parametrize("who", PRINCIPALS)
def test_a_scope_in_an_unknown_form_fits_everybody(who: str) -> None:
    """Only a principal or a role that is named rules others out; `is` does not."""
    policy = CedarPolicy([PolicyText("", f"permit ({who}, action, resource);")], "v")
    other = Principal("spiffe://a.test/y", "auditor", "acme", EXPIRES)
    named = "==" in who or who.startswith("principal in")
    assert policy.may_ever(other, Action.ADD_KEY) is not named
