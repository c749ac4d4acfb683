"""Whom a set of policies could ever permit something: what can be said before a request is read.

Only the policies' scopes are looked at (`permit (principal in Role::"agent", action == …`), and
only to rule out: what no permit's scope can fit is denied for every resource. A scope that is
written in a form not known here fits everybody, so that the answer is never wider than a denial.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cedarpy

from ironwork_server.core.values import Action, Principal

# An entity's type, without the namespace, and its id.
_Entity = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Scope:
    """One permit's. who: the principal or role that it names; actions likewise. None is any."""

    who: _Entity | None
    actions: frozenset[str] | None

    def fits(self, principal: Principal, action: Action) -> bool:
        """Whether the policy could permit this on some resource."""
        return (self.actions is None or action.value in self.actions) and (
            self.who is None
            or self.who in {("Role", principal.role), ("Principal", principal.spiffe_id)}
        )


def scopes_of(policies: Iterable[str]) -> tuple[Scope, ...]:
    """The scopes of all permits among these valid policies, each text one policy."""
    scopes = (_scope(text) for text in policies)
    return tuple(scope for scope in scopes if scope is not None)


def _scope(text: str) -> Scope | None:
    try:
        policies = json.loads(cedarpy.policies_to_json_str(text))["staticPolicies"]
    except RecursionError:
        # A condition that is thousands of operators long, which no bound on brackets excludes.
        return Scope(None, None)
    (policy,) = policies.values()
    if policy["effect"] != "permit":
        return None
    return Scope(_who(policy["principal"]), _actions(policy["action"]))


def _who(scope: dict[str, Any]) -> _Entity | None:
    match scope:
        case {"op": "==" | "in", "entity": {"type": str(kind), "id": str(name)}}:
            return kind.rpartition("::")[2], name
    return None


def _actions(scope: dict[str, Any]) -> frozenset[str] | None:
    match scope:
        case {"op": "==" | "in", "entity": {"id": str(name)}}:
            return frozenset({name})
        case {"op": "in", "entities": list(entities)}:
            return frozenset(entity["id"] for entity in entities)
    return None
