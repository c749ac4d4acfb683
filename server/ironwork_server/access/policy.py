"""Authorisation by Cedar: policies in files, default deny, and every doubt a denial.

A decision costs about 60 µs uncached; decisions are kept by (principal, action, workspace), and
since a CedarPolicy never changes, its version is part of every key. A reload makes a new one.
"""

import json
import logging
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import cedarpy

from ironwork_server.access._cache import BoundedCache
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.policy_files import (
    PolicyText,
    read_folder,
    split,
    version_of,
)
from ironwork_server.access.policy_scopes import scopes_of
from ironwork_server.core.values import Action, Principal

CACHE_ENTRIES = 8192

DEFAULT_POLICY_NAME = "roles.cedar"

_PACKAGE = "ironwork_server.access"
_LOG_ID = "audit"

log = logging.getLogger(__name__)

# Who (SPIFFE ID, role, workspace), what, and on which workspace.
_Question = tuple[str, str, str | None, Action, str | None]


class CedarPolicy:
    """Policies that were loaded together; implements core.ports.Policy. Made by load()."""

    def __init__(self, policies: Sequence[PolicyText], version: str) -> None:
        self._version = version
        self._places = {f"policy{index}": policy.where for index, policy in enumerate(policies)}
        self._set = cedarpy.PolicySet.from_str("\n".join(policy.text for policy in policies))
        self._scopes = scopes_of(policy.text for policy in policies)
        self._decisions: BoundedCache[_Question, bool] = BoundedCache(CACHE_ENTRIES)

    @classmethod
    def load(cls, folder: Path) -> "CedarPolicy":
        """Read, parse and validate every *.cedar file of a folder.

        Raises AccessConfigurationError, naming the file and the line. Blocking: some milliseconds
        for usual files, off the event loop where it serves.
        """
        texts = read_folder(folder)
        policies = [policy for file in texts for policy in split(file)]
        if not policies:
            raise AccessConfigurationError(
                f"policy folder {folder}", "holds no policy, so that everything would be denied"
            )
        for policy in policies:
            _check(policy)
        return cls(policies, version_of(texts))

    @property
    def version(self) -> str:
        """The short SHA-256 of the files' names and texts."""
        return self._version

    def permits(self, principal: Principal, action: Action, workspace: str | None) -> bool:
        """The decision. workspace None is the audit log; only READ_AUDIT applies to it."""
        question = (principal.spiffe_id, principal.role, principal.workspace, action, workspace)
        known = self._decisions.get(question)
        if known is None:
            known = self._decide(principal, action, workspace)
            self._decisions.put(question, known)
        return known

    def may_ever(self, principal: Principal, action: Action) -> bool:
        """Whether any permit's scope fits; where none does, `permits` denies every workspace."""
        return any(scope.fits(principal, action) for scope in self._scopes)

    def _decide(self, principal: Principal, action: Action, workspace: str | None) -> bool:
        if workspace is None and action is not Action.READ_AUDIT:
            return False
        result = cedarpy.is_authorized(
            {
                "principal": _uid("Principal", principal.spiffe_id),
                "action": _uid("Action", action.value),
                "resource": _resource(workspace),
                "context": {},
            },
            self._set,
            json.dumps([_entity(principal)]),
            _schema(),
        )
        errors = result.diagnostics.errors
        if errors:
            # Cedar skips a policy that cannot be evaluated. Were it a `forbid`, skipping it would
            # grant; so any error denies.
            log.error(
                "policy.evaluation_failed",
                extra={
                    "path": self._blamed(errors),
                    "reason": action.value,
                    "version": self._version,
                },
            )
        return result.allowed and not errors

    def _blamed(self, errors: Sequence[str]) -> str:
        """The places of the policies that the errors name; their own texts quote values."""
        places = [
            where
            for name, where in self._places.items()
            if any(f"`{name}`" in error for error in errors)
        ]
        return ", ".join(places) or "unknown"


def default_policy() -> str:
    """The text of the three roles' policies, as `dev` writes them out."""
    return _resource_text(f"default_policies/{DEFAULT_POLICY_NAME}")


def write_default_policies(folder: Path) -> Path:
    """Write the three roles' policies into a folder (made if missing); return the file.

    An existing file is left as it is: it may have been edited.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DEFAULT_POLICY_NAME
    if not path.exists():
        path.write_text(default_policy(), encoding="utf-8")
    return path


def _check(policy: PolicyText) -> None:
    """Parse and validate one policy by itself. Raises AccessConfigurationError with its place."""
    try:
        parsed = cedarpy.PolicySet.from_str(policy.text, release_gil=True)
    except ValueError as error:
        raise AccessConfigurationError(
            policy.where, f"the policy that begins here cannot be parsed: {error}"
        ) from None
    if parsed.templates():
        raise AccessConfigurationError(
            policy.where, "templates grant nothing here; write the principal and resource out"
        )
    result = cedarpy.validate_policies(policy.text, _schema(), release_gil=True)
    if not result.validation_passed:
        problems = "; ".join(
            error.error.removeprefix("for policy `policy0`, ") for error in result.errors
        )
        raise AccessConfigurationError(
            policy.where, f"the policy that begins here does not fit the schema: {problems}"
        )


def _entity(principal: Principal) -> dict[str, object]:
    attributes: dict[str, object] = {
        "spiffe_id": principal.spiffe_id,
        "trust_domain": principal.spiffe_id.split("/")[2],
    }
    if principal.workspace is not None:
        attributes["workspace"] = {"__entity": _uid("Workspace", principal.workspace)}
    return {
        "uid": _uid("Principal", principal.spiffe_id),
        "attrs": attributes,
        "parents": [_uid("Role", principal.role)],
    }


def _resource(workspace: str | None) -> dict[str, str]:
    return _uid("Log", _LOG_ID) if workspace is None else _uid("Workspace", workspace)


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": f"Ironwork::{kind}", "id": name}


@cache
def _schema() -> cedarpy.Schema:
    return cedarpy.Schema.from_str(_resource_text("schema.cedarschema"))


def _resource_text(name: str) -> str:
    return files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")
