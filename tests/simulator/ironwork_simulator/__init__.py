"""A server that behaves as Anthropic's API does, for the demo, the tests and the benchmarks.

NEVER in production: it keeps every key that it is sent in memory, and lies on request.

It answers `GET /v1/models`, `GET /v1/models/{id}`, `POST /v1/messages/count_tokens` and
`POST /v1/messages` (unary and server-sent events) with Anthropic's headers, bodies and errors,
can be told to misbehave down to the byte, and keeps a log of what arrived.

In a test's own loop: `async with Simulator(Config(...)) as simulator`; on a thread of its own:
`with in_thread(Simulator(Config(...))) as simulator`; as a process: `ironwork-simulator --help`.
"""

from ironwork_simulator.behaviour import NAMED_BEHAVIOURS, Behaviour, Match
from ironwork_simulator.config import Config, NotLoopback
from ironwork_simulator.holds import Hold
from ironwork_simulator.keys import KeyState, KnownKey, make_key
from ironwork_simulator.log import NotDisconnected, RequestRecord
from ironwork_simulator.server import Simulator, in_thread

__all__ = [
    "NAMED_BEHAVIOURS",
    "Behaviour",
    "Config",
    "Hold",
    "KeyState",
    "KnownKey",
    "Match",
    "NotDisconnected",
    "NotLoopback",
    "RequestRecord",
    "Simulator",
    "in_thread",
    "make_key",
]
