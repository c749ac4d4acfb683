"""The control endpoint of a simulator that is a process: the same switches, as JSON.

POST /script   {"match": {…}, "behaviour": {…} or a name, "times": 1 or null}
POST /release  {"hold": "name"}
POST /clear    {}
POST /keys     {"key", "organization_id", "state", "behaviour"}: add a key, or replace it
GET  /log      {"requests": […]}: what may be written down (RequestRecord.public)
GET  /behaviours  the names that a behaviour can be called by

It listens on loopback, on a port of its own, and refuses browsers (anything with an Origin).
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ironwork_simulator.behaviour import NAMED_BEHAVIOURS, Behaviour, Match
from ironwork_simulator.connection import After, Connection, Exchange
from ironwork_simulator.headers import head_bytes
from ironwork_simulator.keys import KnownKey
from ironwork_simulator.log import RequestLog, RequestRecord
from ironwork_simulator.plain import Invalid

if TYPE_CHECKING:
    from ironwork_simulator.server import Simulator

_MAX_BODY = 16 * 1024 * 1024


class Control:
    """Serves the control endpoint (ironwork_simulator.connection.Application)."""

    def __init__(self, simulator: "Simulator") -> None:
        self._simulator = simulator
        # Requests to the control endpoint are no part of the simulator's log.
        self._log = RequestLog()
        self._routes: Mapping[tuple[str, str], Callable[[Any], dict[str, object]]] = {
            ("POST", "/script"): self._script,
            ("POST", "/release"): self._release,
            ("POST", "/clear"): self._clear,
            ("POST", "/keys"): self._keys,
            ("GET", "/log"): self._show_log,
            ("GET", "/behaviours"): self._show_behaviours,
        }

    def _script(self, body: Any) -> dict[str, object]:
        times = body.get("times", 1)
        if times is not None and (not isinstance(times, int) or isinstance(times, bool)):
            raise Invalid("times: expected a number or null")
        match = Match.from_json(body.get("match") or {})
        behaviour = Behaviour.from_json(body.get("behaviour", {}))
        self._simulator.script(match, behaviour, times=times)
        return {}

    def _release(self, body: Any) -> dict[str, object]:
        name = body.get("hold")
        if not isinstance(name, str):
            raise Invalid("hold: expected the name of a hold")
        self._simulator.hold(name).release()
        return {}

    def _clear(self, _: Any) -> dict[str, object]:
        self._simulator.clear()
        return {}

    def _keys(self, body: Any) -> dict[str, object]:
        self._simulator.put_key(KnownKey.from_json(body))
        return {}

    def _show_log(self, _: Any) -> dict[str, object]:
        return {"requests": [record.public() for record in self._simulator.requests]}

    def _show_behaviours(self, _: Any) -> dict[str, object]:
        return {"behaviours": {name: dict(fields) for name, fields in NAMED_BEHAVIOURS.items()}}

    # --- ironwork_simulator.connection.Application ---

    def max_body(self, exchange: Exchange) -> int:
        return _MAX_BODY

    def first_byte(self, connection: Connection) -> RequestRecord:
        return self._log.open(connection.number)

    def head_complete(self, exchange: Exchange) -> None:
        """Nothing is decided before the body is here."""

    def body_grew(self, exchange: Exchange) -> None:
        """Nobody waits for it."""

    def body_complete(self, exchange: Exchange) -> None:
        """Bodies of control requests hold keys, and are not kept."""
        exchange.record.body = None

    def finished(self, exchange: Exchange, *, disconnected: bool) -> None:
        """Nobody waits for it."""

    def malformed(self, exchange: Exchange) -> bytes:
        return _response(400, {"error": "the request is not valid HTTP/1.1"}, close=True)

    def upload_gate(self, exchange: Exchange) -> Callable[[], asyncio.Future[None]] | None:
        return None

    async def serve(self, exchange: Exchange) -> None:
        status, document = self._answer(exchange)
        close = exchange.wants_close or exchange.too_large
        try:
            await exchange.write(_response(status, document, close=close))
        except ConnectionResetError:
            return
        exchange.end(After.CLOSE if close else After.KEEP)

    def _answer(self, exchange: Exchange) -> tuple[int, dict[str, object]]:
        record = exchange.record
        if record.values("origin"):
            return 403, {"error": "the control endpoint is not for browsers"}
        if exchange.too_large:
            return 413, {"error": f"the body is larger than {_MAX_BODY} bytes"}
        handler = self._routes.get((record.method, record.path))
        if handler is None:
            routes = ", ".join(f"{method} {path}" for method, path in self._routes)
            return 404, {"error": f"unknown; there is {routes}"}
        try:
            return 200, handler(_json_object(bytes(exchange.body) or b"{}"))
        except Invalid as error:
            return 400, {"error": str(error)}


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        # json's own error carries the document, keys and all.
        raise Invalid("the body is not JSON") from None
    if not isinstance(document, dict):
        raise Invalid("the body is not a JSON object")
    return document


def _response(status: int, document: Mapping[str, object], *, close: bool) -> bytes:
    body = json.dumps(document).encode()
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("connection", "close" if close else "keep-alive"),
    ]
    return head_bytes(status, headers, Behaviour()) + body
