"""The configured mapping from SPIFFE paths to roles and workspaces."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.spiffe import MalformedSpiffeId, check_segment

# The same names as in `workspaces/{workspace}`.
WORKSPACE = re.compile(r"[a-z][a-z0-9-]{0,62}")
MAX_RULES = 100

_ROLE = re.compile(r"[a-z][a-z0-9-]{0,62}")
_VARIABLE = re.compile(r"\{([a-z][a-z0-9_]{0,62})\}")
_WORKSPACE_VARIABLE = "workspace"


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """Principals whose SPIFFE path fits `path` have `role`.

    path: segments that are literal or one variable each. `{workspace}` binds the workspace
    (`[a-z][a-z0-9-]{0,62}`); every other variable, such as `{name}`, binds any one segment. A
    rule without `{workspace}` gives a principal that belongs to no workspace.
    """

    path: str
    role: str


DEFAULT_RULES = (
    IdentityRule("/workspace/{workspace}/key-admin/{name}", "key-admin"),
    IdentityRule("/workspace/{workspace}/agent/{name}", "agent"),
    IdentityRule("/auditor/{name}", "auditor"),
)


@dataclass(frozen=True, slots=True)
class _Segment:
    """One segment of a rule's path: a literal, or a variable where literal is None."""

    literal: str | None
    binds_workspace: bool = False

    def fits(self, value: str) -> bool:
        if self.binds_workspace:
            return WORKSPACE.fullmatch(value) is not None
        return self.literal is None or self.literal == value

    def overlaps(self, other: "_Segment") -> bool:
        """Whether some value fits both."""
        if self.literal is not None:
            return other.fits(self.literal)
        return other.literal is None or self.fits(other.literal)


class CompiledRule:
    """A rule that was checked and can be matched. Raises AccessConfigurationError."""

    def __init__(self, rule: IdentityRule) -> None:
        self.path = rule.path
        self.role = rule.role
        self.segments = _compile(rule)

    def fits(self, segments: Sequence[str]) -> bool:
        """Whether a SPIFFE path with these segments falls under this rule."""
        if len(segments) != len(self.segments):
            return False
        return all(part.fits(value) for part, value in zip(self.segments, segments, strict=True))

    def workspace(self, segments: Sequence[str]) -> str | None:
        """The workspace that a fitting path names; None where the rule binds none."""
        for part, value in zip(self.segments, segments, strict=True):
            if part.binds_workspace:
                return value
        return None

    def overlaps(self, other: "CompiledRule") -> bool:
        """Whether one path could fit both rules."""
        if len(self.segments) != len(other.segments):
            return False
        pairs = zip(self.segments, other.segments, strict=True)
        return all(mine.overlaps(theirs) for mine, theirs in pairs)


def compile_rules(rules: Sequence[IdentityRule]) -> tuple[CompiledRule, ...]:
    """Check the rules, each and together: no path may fit two. Raises AccessConfigurationError."""
    if not 1 <= len(rules) <= MAX_RULES:
        raise AccessConfigurationError(
            "identity rules", f"there are {len(rules)}; give 1 to {MAX_RULES}"
        )
    compiled = tuple(CompiledRule(rule) for rule in rules)
    for first, second in combinations(compiled, 2):
        if first.overlaps(second):
            raise AccessConfigurationError(
                _name(second.path, second.role),
                f"ambiguous: a path can fit it and {_name(first.path, first.role)} as well; make "
                "one literal segment differ",
            )
    return compiled


def _compile(rule: IdentityRule) -> tuple[_Segment, ...]:
    source = _name(rule.path, rule.role)
    if not _ROLE.fullmatch(rule.role):
        raise AccessConfigurationError(source, "the role is not [a-z][a-z0-9-]{0,62}")
    if not rule.path.startswith("/"):
        raise AccessConfigurationError(source, "the path does not begin with /")
    names: set[str] = set()
    segments = []
    for text in rule.path.split("/")[1:]:
        variable = _VARIABLE.fullmatch(text)
        if variable is None:
            segments.append(_literal(text, source))
            continue
        name = variable.group(1)
        if name in names:
            raise AccessConfigurationError(source, f"the variable {{{name}}} stands twice")
        names.add(name)
        segments.append(_Segment(None, binds_workspace=name == _WORKSPACE_VARIABLE))
    return tuple(segments)


def _literal(text: str, source: str) -> _Segment:
    try:
        check_segment(text)
    except MalformedSpiffeId as error:
        raise AccessConfigurationError(
            source, f"{error} (a variable takes a whole segment, such as {{name}})"
        ) from None
    return _Segment(text)


def _name(path: str, role: str) -> str:
    return f"identity rule {path!r} (role {role!r})"
