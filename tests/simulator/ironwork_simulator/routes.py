"""The API's routes, in one table: add a row and a handler to add an endpoint.

Not here yet: batches, files, compressed answers.
"""

import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ironwork_simulator import sse
from ironwork_simulator.answers import answer
from ironwork_simulator.behaviour import Behaviour
from ironwork_simulator.catalogue import find_model, page_of_models
from ironwork_simulator.errors import ApiError
from ironwork_simulator.log import RequestRecord
from ironwork_simulator.reply import Reply
from ironwork_simulator.request import parse_messages

# An echoed key has to stand in one piece, or it is no literal echo.
_ECHO_PIECE = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """A request that may have an answer."""

    record: RequestRecord
    body: bytes
    parameters: Mapping[str, str]
    behaviour: Behaviour

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
    model = find_model(urllib.parse.unquote(call.parameters["model"]))
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


ROUTES: Sequence[Route] = (
    Route("messages", "POST", re.compile(r"/v1/messages"), create_message, inference=True),
    Route(
        "count_tokens",
        "POST",
        re.compile(r"/v1/messages/count_tokens"),
        count_tokens,
        inference=True,
    ),
    Route("models", "GET", re.compile(r"/v1/models"), list_models, inference=False),
    Route("model", "GET", re.compile(r"/v1/models/(?P<model>[^/]+)"), get_model, inference=False),
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
