"""The headers around an answer, as Anthropic and the network in front of it send them."""

import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

from ironwork_simulator.behaviour import Behaviour
from ironwork_simulator.log import RequestRecord

# Per minute: requests, input tokens, output tokens.
REQUESTS_LIMIT = 4_000
INPUT_TOKENS_LIMIT = 2_000_000
OUTPUT_TOKENS_LIMIT = 400_000

_CONSTANT = [
    ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
    ("x-robots-tag", "none"),
    ("via", "1.1 google"),
    ("server", "cloudflare"),
    ("cf-cache-status", "DYNAMIC"),
    ("set-cookie", "_cfuvid=simulated; path=/; domain=api.anthropic.com; HttpOnly; Secure"),
]
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}


class Clock:
    """The dates that headers carry, formatted once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._dates = ("", "")

    def dates(self) -> tuple[str, str]:
        """Now as HTTP writes it (RFC 9110), and the end of this minute as RFC 3339 does."""
        now = int(time.time())
        if now != self._second:
            reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - now % 60 + 60))
            self._second, self._dates = now, (formatdate(now, usegmt=True), reset)
        return self._dates


def timestamp(*, later_s: float = 0.0) -> str:
    """Now, or later, as Anthropic writes times in bodies (RFC 3339)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + later_s))


def standard_headers(
    clock: Clock, record: RequestRecord, organization_id: str | None, content_type: str
) -> list[tuple[str, str]]:
    """What every answer carries. Rate limits are told to known keys only, and count down by the
    request's number, so that they can be foretold.
    """
    date, reset = clock.dates()
    headers = [("date", date), ("content-type", content_type), ("request-id", record.request_id)]
    if organization_id is not None:
        used = record.number
        headers.append(("anthropic-organization-id", organization_id))
        for name, limit, each in (
            ("requests", REQUESTS_LIMIT, 1),
            ("input-tokens", INPUT_TOKENS_LIMIT, 1000),
            ("output-tokens", OUTPUT_TOKENS_LIMIT, 1000),
            ("tokens", INPUT_TOKENS_LIMIT + OUTPUT_TOKENS_LIMIT, 2000),
        ):
            remaining = limit - used * each % limit
            headers.append((f"anthropic-ratelimit-{name}-limit", str(limit)))
            headers.append((f"anthropic-ratelimit-{name}-remaining", str(remaining)))
            headers.append((f"anthropic-ratelimit-{name}-reset", reset))
    headers.append(("cf-ray", f"{record.number:016x}-SIM"))
    return headers + _CONSTANT


def head_bytes(status: int, headers: Iterable[tuple[str, str]], behaviour: Behaviour) -> bytes:
    """A response's head, a behaviour's headers instead of ours where it names the same."""
    if behaviour.headers or behaviour.without_headers:
        own = {name.lower() for name, _ in behaviour.headers}
        own |= {name.lower() for name in behaviour.without_headers}
        headers = [*(h for h in headers if h[0].lower() not in own), *behaviour.headers]
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
