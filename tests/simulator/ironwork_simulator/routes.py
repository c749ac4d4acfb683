"""The API's routes, in one table: add a row and a handler to add an endpoint."""

import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ironwork_simulator import sse
from ironwork_simulator.answers import answer
from ironwork_simulator.batches import BatchStore
from ironwork_simulator.behaviour import Behaviour
from ironwork_simulator.catalogue import find_model, page_of_models
from ironwork_simulator.errors import ApiError
from ironwork_simulator.files import FileStore
from ironwork_simulator.log import RequestRecord
from ironwork_simulator.reply import Reply
from ironwork_simulator.request import parse_messages

# An echoed key has to stand in one piece, or it is no literal echo.
_ECHO_PIECE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that may have an answer."""

    record: RequestRecord
    body: bytes | bytearray
    parameters: Mapping[str, str]
    behaviour: Behaviour
    organization_id: str
    files: FileStore
    batches: BatchStore

    @property
    def id(self) -> str:
        """The id in the path, decoded."""
        return urllib.parse.unquote(self.parameters["id"])

    @property
    def query(self) -> Mapping[str, Sequence[str]]:
        return urllib.parse.parse_qs(self.record.query, max_num_fields=100)


Handler = Callable[[Call], Reply]


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint. inference: needs the permission that a key can lack."""

    name: str
    method: str
    pattern: re.Pattern[str]
    handler: Handler
    inference: bool


def list_models(call: Call) -> Reply:
    return Reply(200, "application/json", sse.dump(page_of_models(call.query)))


def get_model(call: Call) -> Reply:
    model = find_model(call.id)
    return Reply(200, "application/json", sse.dump(model))


def count_tokens(call: Call) -> Reply:
    request = parse_messages(call.body, counting=True)
    return Reply(200, "application/json", sse.dump({"input_tokens": request.usage.total}))


def create_message(call: Call) -> Reply:
    request = parse_messages(call.body)
    behaviour = call.behaviour
    text, options = behaviour.answer, {}
    if behaviour.echo_key == "body":
        text, options = f"{text or ''}Your key is {call.record.key}.", {"piece": _ECHO_PIECE}
    given = answer(request, text=text, tokens=behaviour.answer_tokens)
    identifier = "msg_01" + call.record.request_id[-22:]
    if request.stream:
        events = sse.events(identifier, request, given, **options)
        headers = [("cache-control", "no-cache")]
        return Reply(200, "text/event-stream; charset=utf-8", events=events, headers=headers)
    body = sse.dump(sse.message(identifier, request, given))
    return Reply(200, "application/json", body, paces=max(1, given.output_tokens // 4))


def _json(document: object) -> Reply:
    return Reply(200, "application/json", sse.dump(document))


def upload_file(call: Call) -> Reply:
    content_type = ", ".join(call.record.values("content-type"))
    return _json(call.files.add(call.organization_id, content_type, call.body))


def download_file(call: Call) -> Reply:
    media_type, data = call.files.content(call.organization_id, call.id)
    return Reply(200, media_type, data)


def batch_results(call: Call) -> Reply:
    """As JSON lines, in chunks."""
    lines = call.batches.results(call.organization_id, call.id)
    return Reply(200, "application/x-jsonl", events=lines)


def _route(
    name: str, method: str, path: str, handler: Handler, *, inference: bool = False
) -> Route:
    pattern = re.compile(path.replace("{id}", r"(?P<id>[^/]+)"))
    return Route(name, method, pattern, handler, inference)


_BATCHES = "/v1/messages/batches"

ROUTES: Sequence[Route] = (
    _route("messages", "POST", "/v1/messages", create_message, inference=True),
    _route("count_tokens", "POST", "/v1/messages/count_tokens", count_tokens, inference=True),
    _route("models", "GET", "/v1/models", list_models),
    _route("model", "GET", "/v1/models/{id}", get_model),
    _route(
        "batches.create",
        "POST",
        _BATCHES,
        lambda call: _json(call.batches.add(call.organization_id, call.body)),
        inference=True,
    ),
    _route(
        "batches.list",
        "GET",
        _BATCHES,
        lambda call: _json(call.batches.page(call.organization_id, call.query)),
    ),
    _route(
        "batches.get",
        "GET",
        _BATCHES + "/{id}",
        lambda call: _json(call.batches.get(call.organization_id, call.id)),
    ),
    _route(
        "batches.delete",
        "DELETE",
        _BATCHES + "/{id}",
        lambda call: _json(call.batches.delete(call.organization_id, call.id)),
    ),
    _route(
        "batches.cancel",
        "POST",
        _BATCHES + "/{id}/cancel",
        lambda call: _json(call.batches.cancel(call.organization_id, call.id)),
    ),
    _route("batches.results", "GET", _BATCHES + "/{id}/results", batch_results),
    _route("files.upload", "POST", "/v1/files", upload_file),
    _route(
        "files.list",
        "GET",
        "/v1/files",
        lambda call: _json(call.files.page(call.organization_id, call.query)),
    ),
    _route(
        "files.get",
        "GET",
        "/v1/files/{id}",
        lambda call: _json(call.files.metadata(call.organization_id, call.id)),
    ),
    _route(
        "files.delete",
        "DELETE",
        "/v1/files/{id}",
        lambda call: _json(call.files.delete(call.organization_id, call.id)),
    ),
    _route("files.content", "GET", "/v1/files/{id}/content", download_file),
)


def find_route(method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """The route of a method and a raw path; ApiError 404 or 405. HEAD goes where GET does."""
    wanted = "GET" if method == "HEAD" else method
    allowed = []
    for route in ROUTES:
        found = route.pattern.fullmatch(path)
        if found is None:
            continue
        if route.method == wanted:
            return route, found.groupdict()
        allowed.append(route.method)
    if allowed:
        raise ApiError(405, headers=(("allow", ", ".join(allowed)),))
    raise ApiError(404)
