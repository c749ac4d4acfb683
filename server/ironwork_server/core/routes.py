"""The list of API paths that an agent may reach. Default deny: what is not here is refused.

A group is what an operator turns on or off. HEAD passes wherever a path is listed: it costs no
tokens, and clients probe with it. `/v1/organizations` (the Admin API) is in no group and cannot
be configured; neither are paths whose answers hold secrets of their own (tunnels, vaults).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1024 * 1024

DEFAULT_GROUPS = frozenset({"messages", "count_tokens", "batches", "models", "files"})

# An id as Anthropic writes them. No percent-encoding of what needs none (RFC 3986, section 2.3),
# so that a path has one spelling; `:`, `[`, `]`, `+`, `=` and `,` may be encoded, since client
# libraries do that. Not a lone `.` at the beginning: `..` is no id.
_ID = r"(?!\.)(?:[A-Za-z0-9_.:-]|%(?:3[Aa]|5[Bb]|5[Dd]|2[Bb]|3[Dd]|2[Cc]))+"


@dataclass(frozen=True, slots=True)
class Route:
    """One listed path. name is for the audit log and metrics; max_body is in bytes."""

    group: str
    name: str
    pattern: re.Pattern[str]
    methods: frozenset[str]
    max_body: int


def _route(group: str, name: str, template: str, methods: str, max_body: int = MIB) -> Route:
    pattern = re.compile(re.escape(template).replace(re.escape("{id}"), _ID))
    return Route(group, name, pattern, frozenset({"HEAD", *methods.split()}), max_body)


# Anthropic's own bounds for bodies: Messages 32 MB, Batches 256 MB, Files 500 MB, Skills 30 MB.
_ROUTES = (
    _route("messages", "messages", "/v1/messages", "POST", 32 * MIB),
    _route("count_tokens", "count_tokens", "/v1/messages/count_tokens", "POST", 32 * MIB),
    _route("models", "models", "/v1/models", "GET"),
    _route("models", "models.get", "/v1/models/{id}", "GET"),
    _route("batches", "batches", "/v1/messages/batches", "GET POST", 256 * MIB),
    _route("batches", "batches.get", "/v1/messages/batches/{id}", "GET DELETE"),
    _route("batches", "batches.cancel", "/v1/messages/batches/{id}/cancel", "POST"),
    _route("batches", "batches.results", "/v1/messages/batches/{id}/results", "GET"),
    _route("files", "files", "/v1/files", "GET POST", 500 * MIB),
    _route("files", "files.get", "/v1/files/{id}", "GET DELETE"),
    _route("files", "files.content", "/v1/files/{id}/content", "GET"),
    # --- off unless a setting names the group -----------------------------------------------------
    _route("skills", "skills", "/v1/skills", "GET POST", 32 * MIB),
    _route("skills", "skills.get", "/v1/skills/{id}", "GET DELETE"),
    _route("skills", "skills.versions", "/v1/skills/{id}/versions", "GET POST", 32 * MIB),
    _route("skills", "skills.version", "/v1/skills/{id}/versions/{id}", "GET DELETE"),
    _route("skills", "skills.content", "/v1/skills/{id}/versions/{id}/content", "GET"),
    _route("agents", "agents", "/v1/agents", "GET POST"),
    _route("agents", "agents.get", "/v1/agents/{id}", "GET POST"),
    _route("agents", "agents.archive", "/v1/agents/{id}/archive", "POST"),
    _route("agents", "agents.versions", "/v1/agents/{id}/versions", "GET"),
    _route("sessions", "sessions", "/v1/sessions", "GET POST"),
    _route("sessions", "sessions.get", "/v1/sessions/{id}", "GET POST DELETE"),
    _route("sessions", "sessions.archive", "/v1/sessions/{id}/archive", "POST"),
    _route("sessions", "sessions.events", "/v1/sessions/{id}/events", "GET POST", 32 * MIB),
    _route("sessions", "sessions.stream", "/v1/sessions/{id}/events/stream", "GET"),
    _route("sessions", "sessions.resources", "/v1/sessions/{id}/resources", "GET POST"),
    _route("sessions", "sessions.resource", "/v1/sessions/{id}/resources/{id}", "GET POST DELETE"),
    _route("sessions", "sessions.threads", "/v1/sessions/{id}/threads", "GET"),
    _route("sessions", "sessions.thread", "/v1/sessions/{id}/threads/{id}", "GET"),
    _route("sessions", "sessions.thread_archive", "/v1/sessions/{id}/threads/{id}/archive", "POST"),
    _route("sessions", "sessions.thread_events", "/v1/sessions/{id}/threads/{id}/events", "GET"),
    _route("sessions", "sessions.thread_stream", "/v1/sessions/{id}/threads/{id}/stream", "GET"),
)

KNOWN_GROUPS = frozenset(route.group for route in _ROUTES)


class RouteTable:
    """The paths of the groups that are on."""

    def __init__(self, groups: Iterable[str] = DEFAULT_GROUPS) -> None:
        """Raises ValueError, which lists the known groups, for a group that is none."""
        self.groups = frozenset(groups)
        if not self.groups <= KNOWN_GROUPS:
            known = ", ".join(sorted(KNOWN_GROUPS))
            raise ValueError(f"unknown group of API paths; the known ones are {known}")
        self.routes = tuple(route for route in _ROUTES if route.group in self.groups)
        self._off = tuple(route for route in _ROUTES if route.group not in self.groups)

    def match(self, path: str) -> Route | None:
        """The listed path that this is, byte for byte; None where it is none."""
        return _first(self.routes, path)

    def group_off(self, path: str) -> str | None:
        """The group that would have to be on for this path; None where no setting helps."""
        route = _first(self._off, path)
        return None if route is None else route.group


def _first(routes: tuple[Route, ...], path: str) -> Route | None:
    for route in routes:
        if route.pattern.fullmatch(path):
            return route
    return None
