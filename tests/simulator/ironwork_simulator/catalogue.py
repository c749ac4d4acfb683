"""The models that the simulator offers, in the shape of the SDK's types.ModelInfo, newest first."""

from collections.abc import Mapping, Sequence
from typing import Any

from ironwork_simulator.errors import ApiError
from ironwork_simulator.paging import page_by_id


def _yes(*names: str) -> dict[str, Any]:
    return {name: {"supported": True} for name in names}


_CAPABILITIES: Mapping[str, Any] = {
    **_yes("batch", "citations", "code_execution", "image_input", "pdf_input"),
    **_yes("structured_outputs"),
    "context_management": {
        "supported": True,
        **_yes("clear_thinking_20251015", "clear_tool_uses_20250919", "compact_20260112"),
    },
    "effort": {"supported": True, **_yes("low", "medium", "high", "max")},
    "server_tools": {"supported": True, **_yes("code_execution", "web_search")},
    "thinking": {
        "supported": True,
        "types": _yes("adaptive", "between_tools", "disabled", "enabled"),
    },
}


def _model(
    identifier: str, name: str, line: str, created: str, **lifecycle: str | None
) -> dict[str, Any]:
    return {
        "type": "model",
        "id": identifier,
        "display_name": name,
        "created_at": created,
        "line": line,
        "lifecycle": lifecycle.get("lifecycle", "active"),
        "deprecated_at": lifecycle.get("deprecated_at"),
        "retires_at": lifecycle.get("retires_at"),
        "max_input_tokens": 1_000_000,
        "max_tokens": 128_000,
        "capabilities": _CAPABILITIES,
    }


MODELS: Sequence[Mapping[str, Any]] = (
    _model("claude-haiku-5-5", "Claude Haiku 5.5", "haiku", "2026-10-01T00:00:00Z"),
    _model("claude-sonnet-5-5", "Claude Sonnet 5.5", "sonnet", "2026-09-01T00:00:00Z"),
    _model("claude-opus-5-5", "Claude Opus 5.5", "opus", "2026-08-01T00:00:00Z"),
    _model("claude-sonnet-5", "Claude Sonnet 5", "sonnet", "2026-05-01T00:00:00Z"),
    _model("claude-opus-5", "Claude Opus 5", "opus", "2026-04-01T00:00:00Z"),
    _model("claude-haiku-4-5-20251001", "Claude Haiku 4.5", "haiku", "2025-10-15T00:00:00Z"),
    _model(
        "claude-sonnet-4-5-20250929",
        "Claude Sonnet 4.5",
        "sonnet",
        "2025-09-29T00:00:00Z",
        lifecycle="deprecated",
        deprecated_at="2026-06-01T00:00:00Z",
        retires_at="2026-11-30T00:00:00Z",
    ),
    _model(
        "claude-3-7-sonnet-20250219",
        "Claude Sonnet 3.7",
        "sonnet",
        "2025-02-24T00:00:00Z",
        lifecycle="retired",
        deprecated_at="2025-10-28T00:00:00Z",
        retires_at="2026-02-19T00:00:00Z",
    ),
)
_ALIASES: Mapping[str, str] = {
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
}
_BY_ID: Mapping[str, Mapping[str, Any]] = {model["id"]: model for model in MODELS}


def find_model(identifier: str) -> Mapping[str, Any]:
    """The model of this id or alias; ApiError 404 for any other."""
    model = _BY_ID.get(_ALIASES.get(identifier, identifier))
    if model is None:
        raise ApiError(404, f"model: {identifier[:100]}")
    return model


def usable_model(identifier: str) -> str:
    """The id under which a request's model answers; ApiError 404 if it serves none."""
    model = find_model(identifier)
    if model["lifecycle"] == "retired":
        raise ApiError(404, f"model: {identifier[:100]}")
    return str(model["id"])


def page_of_models(query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A page as `GET /v1/models` gives it; lifecycle beside what page_by_id takes."""
    return page_by_id(_living(query), query)


def _living(query: Mapping[str, Sequence[str]]) -> list[Mapping[str, Any]]:
    asked = [*query.get("lifecycle", ()), *query.get("lifecycle[]", ())]
    stages = {stage for value in asked for stage in value.split(",")}
    return [m for m in MODELS if m["lifecycle"] in (stages or {"active", "deprecated"})]
