"""The mapping from SPIFFE paths to roles and workspaces."""

import pytest

from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.rules import DEFAULT_RULES, MAX_RULES, IdentityRule, compile_rules


def rule(path: str, role: str = "agent") -> IdentityRule:
    return IdentityRule(path=path, role=role)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "begin with /"),
        ("workspace/{workspace}", "begin with /"),
        ("/", "empty"),
        ("/a/", "empty"),
        ("/a//b", "empty"),
        ("/a/../b", "relative"),
        ("/a/x{name}", "whole segment"),
        ("/a/{Name}", "whole segment"),
        ("/a/{}", "whole segment"),
        ("/a/%7b", "empty or has characters"),
        ("/{workspace}/{workspace}", "twice"),
        ("/{name}/{name}", "twice"),
    ],
)
def test_an_invalid_path_is_an_error_that_names_the_rule(path: str, problem: str) -> None:
    """A rule that cannot be read is refused when it is configured, by name."""
    with pytest.raises(AccessConfigurationError) as error:
        compile_rules([rule(path)])
    assert repr(path) in error.value.source
    assert problem in error.value.problem


@pytest.mark.parametrize("role", ["", "Agent", "key admin", "-agent", "a" * 64])
def test_an_invalid_role_is_an_error(role: str) -> None:
    """Roles are plain names: they become Cedar's entity ids."""
    with pytest.raises(AccessConfigurationError, match="role"):
        compile_rules([rule("/a", role)])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/a/{name}", "/a/{other}"),
        ("/a/b", "/a/b"),
        ("/a/{name}", "/a/b"),
        ("/{workspace}/x", "/acme/x"),
        ("/acme/x", "/{workspace}/x"),
        ("/{workspace}/x", "/{name}/x"),
        ("/{name}/x", "/{workspace}/x"),
        ("/{workspace}/x", "/{workspace}/{name}"),
    ],
)
def test_two_rules_that_one_path_could_fit_are_ambiguous(first: str, second: str) -> None:
    """Order decides nothing: what could be read in two ways is refused, naming both."""
    with pytest.raises(AccessConfigurationError, match="ambiguous") as error:
        compile_rules([rule(first), rule(second, "auditor")])
    assert repr(second) in str(error.value)
    assert repr(first) in str(error.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/a/{name}", "/b/{name}"),
        ("/a/{name}", "/a/{name}/c"),
        # A workspace begins with a letter and has no capitals, so these literals never fit it.
        ("/{workspace}/x", "/1/x"),
        ("/ACME/x", "/{workspace}/x"),
    ],
)
def test_rules_that_no_path_can_fit_both_stand_together(first: str, second: str) -> None:
    """Rules that differ in length or in a literal segment are not ambiguous."""
    assert len(compile_rules([rule(first), rule(second)])) == 2


def test_the_default_rules_are_not_ambiguous() -> None:
    """What ships is valid."""
    assert [compiled.role for compiled in compile_rules(DEFAULT_RULES)] == [
        "key-admin",
        "agent",
        "auditor",
    ]


def test_there_is_at_least_one_rule_and_a_bound() -> None:
    """With no rule nobody could call, which is a mistake; and a list has a bound."""
    with pytest.raises(AccessConfigurationError, match="there are 0"):
        compile_rules([])
    with pytest.raises(AccessConfigurationError, match=f"1 to {MAX_RULES}"):
        compile_rules([rule(f"/a{number}") for number in range(MAX_RULES + 1)])
