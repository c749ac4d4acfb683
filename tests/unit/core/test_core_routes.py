"""The list of API paths."""

import pytest

from ironwork_server.core.routes import DEFAULT_GROUPS, KNOWN_GROUPS, MIB, RouteTable

DEFAULT = RouteTable()
EVERYTHING = RouteTable(KNOWN_GROUPS)

LISTED = [
    ("/v1/messages", "messages", "HEAD POST", 32),
    ("/v1/messages/count_tokens", "count_tokens", "HEAD POST", 32),
    ("/v1/models", "models", "GET HEAD", 1),
    ("/v1/models/claude-opus-4-5", "models.get", "GET HEAD", 1),
    ("/v1/messages/batches", "batches", "GET HEAD POST", 256),
    ("/v1/messages/batches/msgbatch_01", "batches.get", "DELETE GET HEAD", 1),
    ("/v1/messages/batches/msgbatch_01/cancel", "batches.cancel", "HEAD POST", 1),
    ("/v1/messages/batches/msgbatch_01/results", "batches.results", "GET HEAD", 1),
    ("/v1/files", "files", "GET HEAD POST", 500),
    ("/v1/files/file_01", "files.get", "DELETE GET HEAD", 1),
    ("/v1/files/file_01/content", "files.content", "GET HEAD", 1),
]


@pytest.mark.parametrize(("path", "name", "methods", "max_body"), LISTED)
def test_default_paths(path: str, name: str, methods: str, max_body: int) -> None:
    """These paths, with these methods and bounds, are on by default."""
    route = DEFAULT.match(path)
    assert route is not None
    assert (route.name, " ".join(sorted(route.methods))) == (name, methods)
    assert route.max_body == max_body * MIB


def test_nothing_else_is_on_by_default() -> None:
    """The default is those paths and no other."""
    assert {"messages", "count_tokens", "batches", "models", "files"} == DEFAULT_GROUPS
    assert {route.name for route in DEFAULT.routes} == {name for _, name, _, _ in LISTED}
    assert RouteTable(()).routes == ()
    assert RouteTable(frozenset()).match("/v1/messages") is None


def test_names_are_unique() -> None:
    """A route's name stands for one path in the audit log."""
    names = [route.name for route in EVERYTHING.routes]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", ["", "/me", "/users", "/api_keys", "/x/y", "/v1/messages"])
@pytest.mark.parametrize("table", [DEFAULT, EVERYTHING])
def test_the_admin_api_is_on_no_list(table: RouteTable, path: str) -> None:
    """Whatever is configured, no path below /v1/organizations is listed, or could be."""
    assert table.match("/v1/organizations" + path) is None
    assert table.group_off("/v1/organizations" + path) is None


@pytest.mark.parametrize("group", ["organizations", "tunnels", "vaults", "", "Messages", "*"])
def test_unknown_groups_are_errors(group: str) -> None:
    """A group that does not exist is an error that lists those that do, not an empty list."""
    with pytest.raises(ValueError, match="agents, batches, count_tokens, files, messages, models"):
        RouteTable(DEFAULT_GROUPS | {group})


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("/v1/skills", "skills"),
        ("/v1/skills/skill_01/versions/1759178010641129/content", "skills"),
        ("/v1/agents/agent_01", "agents"),
        ("/v1/sessions/sesn_01/events/stream", "sessions"),
        ("/v1/sessions/sesn_01/threads/t_1/stream", "sessions"),
    ],
)
def test_other_groups_are_for_the_operator(path: str, group: str) -> None:
    """Further groups are off until a setting names them, and a refusal can say which."""
    assert DEFAULT.match(path) is None
    assert DEFAULT.group_off(path) == group
    on = RouteTable(DEFAULT_GROUPS | {group})
    assert on.match(path) is not None
    assert on.group_off(path) is None


@pytest.mark.parametrize(
    "id_", ["a", "claude-3:5", "A.b_c-d:e", "m%5B1m%5D", "m%5b1m%5d", "a%3A%2B%3D%2C"]
)
def test_ids(id_: str) -> None:
    """An id is letters, digits and `_.:-`; five more characters may stand percent-encoded."""
    assert DEFAULT.match(f"/v1/models/{id_}") is not None


@pytest.mark.parametrize(
    "id_",
    ["", ".", "..", "...", ".a", "a/b", "%2e", "%61", "a%20b", "a+b", "é", "a%", "a%5", "a\n"],
)
def test_other_ids(id_: str) -> None:
    """What is no id does not match, even before the path's syntax is looked at."""
    assert DEFAULT.match(f"/v1/models/{id_}") is None
