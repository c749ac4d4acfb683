"""Who may have which answer: the credential, the version header, and what a key's state allows."""

import re
from collections.abc import Mapping

from ironwork_simulator.errors import ApiError
from ironwork_simulator.keys import KeyState, KeyTable, KnownKey
from ironwork_simulator.log import RequestRecord

_VERSION = re.compile(r"20\d\d-\d\d-\d\d", re.ASCII)
_DISABLED = "This organization has been disabled."


def presented_key(record: RequestRecord) -> tuple[str | None, str | None]:
    """The credential of a request and the header it came in: `x-api-key`, else a Bearer token.

    A header that came twice counts as its values joined, as it does for Anthropic.
    """
    keys = record.values("x-api-key")
    if keys:
        return ", ".join(keys), "x-api-key"
    for value in record.values("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer" and token:
            return token.strip(), "authorization"
    return None, None


def admit(record: RequestRecord, keys: KeyTable, *, inference: bool) -> KnownKey:
    """The key behind a request, or the ApiError that Anthropic gives: first for the credential,
    then for the version header.
    """
    if record.key is None:
        raise ApiError(401, "x-api-key header is required")
    known = keys.find(record.key)
    if known is None:
        raise ApiError(401)
    _check_state(known.state, inference=inference)
    versions = record.values("anthropic-version")
    if not versions or not any(versions):
        raise ApiError(400, "anthropic-version: header is required")
    if not _VERSION.fullmatch(", ".join(versions)):
        raise ApiError(400, "anthropic-version: is not a valid version")
    return known


def _check_state(state: KeyState, *, inference: bool) -> None:
    if state is KeyState.VALID:
        return
    always: Mapping[KeyState, ApiError] = {
        KeyState.REVOKED: ApiError(401),
        KeyState.ORGANIZATION_DISABLED: ApiError(400, _DISABLED),
        KeyState.ORGANIZATION_ON_HOLD: ApiError(
            400, _DISABLED, details={"error_code": "organization_on_hold"}
        ),
    }
    for_inference: Mapping[KeyState, ApiError] = {
        KeyState.WITHOUT_INFERENCE: ApiError(403),
        KeyState.WITHOUT_CREDIT: ApiError(402),
    }
    error = always.get(state) or (for_inference.get(state) if inference else None)
    if error is not None:
        raise error
