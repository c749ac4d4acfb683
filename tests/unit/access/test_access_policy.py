"""Cedar decides: three roles, default deny, and every doubt a denial."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import cedarpy
import pytest

from fixtures.pki import agent_id, auditor_id, key_admin_id
from ironwork_server.access import policy as policy_module
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.policy import CedarPolicy, default_policy, write_default_policies
from ironwork_server.core.ports import Policy
from ironwork_server.core.values import Action, Principal

EXPIRES = datetime(2100, 1, 1, tzinfo=UTC)
KEY_ADMIN = Principal(key_admin_id(), "key-admin", "acme", EXPIRES)
AGENT = Principal(agent_id(), "agent", "acme", EXPIRES)
AUDITOR = Principal(auditor_id(), "auditor", None, EXPIRES)
PRINCIPALS = {"key-admin": KEY_ADMIN, "agent": AGENT, "auditor": AUDITOR}

KEY_ACTIONS = (Action.ADD_KEY, Action.LIST_MASKED, Action.DELETE_KEY)
# (role, action, workspace): everything that the three roles may do. All else is denied.
GRANTED = {
    *(("key-admin", action, "acme") for action in KEY_ACTIONS),
    ("agent", Action.WITH_KEY, "acme"),
    ("auditor", Action.READ_AUDIT, None),
    ("auditor", Action.READ_AUDIT, "acme"),
    ("auditor", Action.READ_AUDIT, "globex"),
}

PERMIT_ALL = "permit (principal, action, resource);"
FORBID_KEYS = """
forbid (principal, action == Ironwork::Action::"WithKey", resource == Ironwork::Workspace::"acme");
"""
# Evaluating it fails: Cedar's whole numbers have 64 bits and overflow is an error.
OVERFLOW = "when { 9223372036854775807 + 1 > 0 };"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.cedar").write_text(text)
    return folder


@pytest.fixture(name="roles")
def load_roles(tmp_path: Path) -> CedarPolicy:
    write_default_policies(tmp_path / "policies")
    return CedarPolicy.load(tmp_path / "policies")


@pytest.mark.parametrize("workspace", ["acme", "globex", None])
@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("role", list(PRINCIPALS))
def test_each_role_may_do_exactly_what_the_matrix_says(
    roles: Policy, role: str, action: Action, workspace: str | None
) -> None:
    """3 roles, 5 actions, on the own workspace, a foreign one and none."""
    expected = (role, action, workspace) in GRANTED
    assert roles.permits(PRINCIPALS[role], action, workspace) is expected
    # The second answer comes from the cache.
    assert roles.permits(PRINCIPALS[role], action, workspace) is expected


@pytest.mark.parametrize("action", list(Action))
def test_a_role_that_no_policy_names_may_do_nothing(roles: Policy, action: Action) -> None:
    """Default deny."""
    stranger = Principal(agent_id(), "stranger", "acme", EXPIRES)
    assert not roles.permits(stranger, action, "acme")
    assert not roles.permits(stranger, action, None)


@pytest.mark.parametrize("action", [*KEY_ACTIONS, Action.WITH_KEY])
def test_a_principal_without_workspace_has_no_own_workspace(roles: Policy, action: Action) -> None:
    """A role alone grants nothing: the workspace must be the principal's own."""
    for role in ("key-admin", "agent"):
        unbound = Principal(agent_id(), role, None, EXPIRES)
        assert not roles.permits(unbound, action, "acme")


def test_what_has_no_workspace_is_the_log_whatever_policies_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Key actions always name a workspace, also under a policy that permits everything."""
    policy = CedarPolicy.load(write(tmp_path / "p", all=PERMIT_ALL))
    assert policy.permits(AGENT, Action.READ_AUDIT, None)
    assert policy.permits(AGENT, Action.ADD_KEY, "globex")
    assert not policy.permits(AGENT, Action.ADD_KEY, None)
    assert not caplog.records


def test_a_forbid_overrides_every_permit(tmp_path: Path) -> None:
    """A forbid in any file wins, for what it names and nothing else."""
    folder = write(tmp_path / "p", a=PERMIT_ALL, b=FORBID_KEYS, c=PERMIT_ALL)
    policy = CedarPolicy.load(folder)
    assert not policy.permits(AGENT, Action.WITH_KEY, "acme")
    assert policy.permits(AGENT, Action.WITH_KEY, "globex")
    assert policy.permits(AGENT, Action.ADD_KEY, "acme")


def test_policies_can_speak_of_single_principals(tmp_path: Path) -> None:
    """The SPIFFE ID, its trust domain and its path are there for conditions."""
    text = f"""
    permit (principal == Ironwork::Principal::"{agent_id()}", action, resource);
    permit (principal, action == Ironwork::Action::"AddKey", resource)
    when {{ principal.spiffe_id like "*/key-admin/*" && principal.trust_domain == "other" }};
    """
    policy = CedarPolicy.load(write(tmp_path / "p", one=text))
    assert policy.permits(AGENT, Action.WITH_KEY, "acme")
    other = Principal("spiffe://other/x/key-admin/y", "key-admin", None, EXPIRES)
    assert policy.permits(other, Action.ADD_KEY, "acme")
    assert not policy.permits(KEY_ADMIN, Action.ADD_KEY, "acme")


@pytest.mark.parametrize("effect", ["permit", "forbid"])
def test_an_error_in_evaluation_denies_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, effect: str
) -> None:
    """Cedar skips a policy that fails; a skipped forbid would grant, so any error denies."""
    broken = f"\n\n{effect} (principal, action, resource)\n{OVERFLOW}"
    policy = CedarPolicy.load(write(tmp_path / "p", a=PERMIT_ALL, b=broken))
    with caplog.at_level(logging.ERROR):
        assert not policy.permits(AGENT, Action.WITH_KEY, "acme")
    (record,) = caplog.records
    assert (record.msg, record.levelname) == ("policy.evaluation_failed", "ERROR")
    fields = record.__dict__
    assert (fields["path"], fields["reason"], fields["version"]) == (
        "b.cedar:3",
        "WithKey",
        policy.version,
    )


def test_an_error_that_names_no_policy_denies_too(
    roles: CedarPolicy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Cedar reports beside a decision denies it, and its own text is not logged."""
    answer = cedarpy.AuthzResult({"decision": "Allow", "diagnostics": {"errors": ["canary"]}})
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_: answer)
    with caplog.at_level(logging.ERROR):
        assert not roles.permits(AGENT, Action.WITH_KEY, "acme")
    (record,) = caplog.records
    assert record.__dict__["path"] == "unknown"
    assert "canary" not in str(record.__dict__)


def test_the_version_changes_with_names_and_texts_only(tmp_path: Path) -> None:
    """The version is a short hash of the files: equal files have equal versions."""
    first = CedarPolicy.load(write(tmp_path / "1", a=PERMIT_ALL)).version
    assert len(first) == 16
    assert CedarPolicy.load(write(tmp_path / "2", a=PERMIT_ALL)).version == first
    assert CedarPolicy.load(write(tmp_path / "3", b=PERMIT_ALL)).version != first
    assert CedarPolicy.load(write(tmp_path / "4", a=PERMIT_ALL + " ")).version != first
    assert CedarPolicy.load(write(tmp_path / "5", a=PERMIT_ALL, b=FORBID_KEYS)).version != first


def test_the_memory_of_decisions_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many principals ask, only the latest decisions are kept."""
    monkeypatch.setattr(policy_module, "CACHE_ENTRIES", 3)
    policy = CedarPolicy.load(write(tmp_path / "p", a=PERMIT_ALL))
    for number in range(9):
        principal = Principal(agent_id("acme", f"a{number}"), "agent", "acme", EXPIRES)
        assert policy.permits(principal, Action.WITH_KEY, "acme")
    assert len(policy._decisions) == 3


def test_a_decision_is_remembered_for_exactly_who_asked(roles: CedarPolicy) -> None:
    """The same SPIFFE ID under another role or workspace is another question."""
    assert roles.permits(AGENT, Action.WITH_KEY, "acme")
    for role, workspace in (("auditor", "acme"), ("agent", "globex"), ("agent", None)):
        other = Principal(AGENT.spiffe_id, role, workspace, EXPIRES)
        assert not roles.permits(other, Action.WITH_KEY, "acme")
    assert not roles.permits(AGENT, Action.WITH_KEY, "globex")
    assert not roles.permits(AGENT, Action.ADD_KEY, "acme")


def test_a_renewed_certificate_asks_the_same_question(roles: CedarPolicy) -> None:
    """The certificate's end is no part of a decision: renewal does not fill the cache."""
    later = Principal(AGENT.spiffe_id, AGENT.role, AGENT.workspace, EXPIRES.replace(year=2101))
    assert roles.permits(AGENT, Action.WITH_KEY, "acme")
    assert roles.permits(later, Action.WITH_KEY, "acme")
    assert len(roles._decisions) == 1


GOOD = "// a comment; with a semicolon\n\n" + PERMIT_ALL + "\n"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        (GOOD + "permit (principal, action\nresource);", 4, "cannot be parsed"),
        (GOOD + GOOD + '\n"unterminated', 8, "cannot be parsed"),
        (GOOD + "permit (principal, action, resource)", 4, "cannot be parsed"),
        (GOOD + ";", 4, "cannot be parsed"),
        (
            GOOD + 'permit (principal, action == Ironwork::Action::"RevealKey", resource);',
            4,
            "RevealKey",
        ),
        (
            GOOD
            + "\npermit (principal, action, resource)\nwhen { principal.workspace == resource };",
            5,
            "optional attribute",
        ),
        (GOOD + "permit (principal, action, resource) when { principal.admin };", 4, "schema"),
        (GOOD + "permit (principal == ?principal, action, resource);", 4, "templates"),
        (GOOD + "permit (principal, action, resource) when { " + "(" * 80, 4, "nested"),
        (GOOD + "permit (principal, action, resource) when { " + "if true then " * 80, 4, "nested"),
        (
            GOOD + "permit (principal, action, resource) when { " + "1+" * 9000 + "1 > 0};",
            4,
            "longer",
        ),
    ],
)
def test_a_broken_file_is_refused_with_file_and_line(
    tmp_path: Path, text: str, line: int, problem: str
) -> None:
    """The error names the file and the line on which the broken policy begins."""
    folder = write(tmp_path / "p", good=PERMIT_ALL, broken=text)
    with pytest.raises(AccessConfigurationError, match=problem) as error:
        CedarPolicy.load(folder)
    assert error.value.source == f"broken.cedar:{line}"


def test_the_policies_that_ship_are_as_valid_as_any(tmp_path: Path) -> None:
    """write_default_policies writes what default_policy says, and never over an edited file."""
    path = write_default_policies(tmp_path / "new" / "policies")
    assert path.read_text() == default_policy()
    path.write_text(PERMIT_ALL)
    assert write_default_policies(path.parent) == path
    assert path.read_text() == PERMIT_ALL
