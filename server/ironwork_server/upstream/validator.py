"""Asks Anthropic about a key: core.ports.KeyValidator, by Anthropic's own SDK.

The SDK shapes the two requests and reads the answers; it never sees the key. Its HTTP transport
is our own upstream client, which injects the key into the socket write as for an agent's request.
So everything that holds for those holds here: one origin, no redirects, no environment, nothing
for a library to log, no copy that cannot be wiped.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import anthropic
import httpx2

from ironwork_server.core.errors import IronworkError, UpstreamFailed
from ironwork_server.core.names import looks_like_credential
from ironwork_server.core.ports import Injector
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import ScreenedRequest, Validation, Verdict
from ironwork_server.upstream.client import HttpUpstream

# What goes out, whatever the SDK or ANTHROPIC_CUSTOM_HEADERS would add. This version of the API
# is the one that takes a key in x-api-key from every client.
_HEADERS = (
    (b"accept", b"application/json"),
    (b"anthropic-version", b"2023-06-01"),
    (b"user-agent", b"ironwork-keys"),
)
_JSON = (b"content-type", b"application/json")
_TARGETS = frozenset({("GET", "/v1/models"), ("POST", "/v1/messages/count_tokens")})
_ANSWER_HEADERS = ("content-type", "retry-after")
# The SDK wants a key; this is not one.
_PLACEHOLDER = "held-by-ironwork"
_MAX_REQUEST_BYTES = 4 * 1024
_MAX_ANSWER_BYTES = 1024 * 1024
_MAX_RETRY_AFTER_S = 300.0
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
_REFUSALS = {
    (401, "authentication_error"): Validation(Verdict.INVALID, detail="AUTHENTICATION_ERROR"),
    (403, "permission_error"): Validation(Verdict.WITHOUT_PERMISSION, detail="PERMISSION_ERROR"),
}
_STATUS_DETAILS = {402: "BILLING_ERROR", 429: "RATE_LIMITED", 529: "OVERLOADED"}
_UNEXPECTED = Validation(Verdict.UNVERIFIABLE, detail="UNEXPECTED_ANSWER")
_UNEXPECTED_REASONS = frozenset({"UPSTREAM_REDIRECT", "UPSTREAM_MALFORMED"})


class AnthropicKeyValidator:
    """Two calls that cost no tokens: the models, then count_tokens on the first of them, so that
    a key without permission for inference is found out.

    `detail` of the answer: ACCEPTED; AUTHENTICATION_ERROR; PERMISSION_ERROR; or, UNVERIFIABLE,
    BILLING_ERROR, RATE_LIMITED, OVERLOADED, SERVER_ERROR, TIMEOUT, UNEXPECTED_ANSWER, or a reason
    of HttpUpstream.
    """

    def __init__(self, upstream: HttpUpstream, *, deadline_s: float = 15.0) -> None:
        """upstream stays the caller's to close. deadline_s bounds both calls together."""
        self._upstream = upstream
        self._deadline_s = deadline_s

    async def validate(self, key: Secret) -> Validation:
        """Raises nothing of its own: what cannot be found out is UNVERIFIABLE."""
        transport = _Transport(self._upstream, key)
        deadline = asyncio.timeout(self._deadline_s)
        try:
            async with deadline, self._client(transport) as client:
                return await _ask(client, transport)
        except TimeoutError:
            return Validation(Verdict.UNVERIFIABLE, detail="TIMEOUT")

    def _client(self, transport: "_Transport") -> anthropic.AsyncAnthropic:
        """Each argument keeps an environment variable of the SDK or of httpx2 from counting;
        ANTHROPIC_CUSTOM_HEADERS has no argument and is dropped by the transport."""
        return anthropic.AsyncAnthropic(
            api_key=_PLACEHOLDER,
            webhook_key="",
            base_url=self._upstream.endpoint.base_url,
            max_retries=0,
            timeout=self._deadline_s,
            open_telemetry=False,
            http_client=httpx2.AsyncClient(
                transport=transport,
                trust_env=False,
                follow_redirects=False,
                timeout=self._deadline_s,
            ),
        )


class _UnexpectedAnswer(Exception):
    """A 200 that does not hold what it should."""


async def _ask(client: anthropic.AsyncAnthropic, transport: "_Transport") -> Validation:
    try:
        await _call_both(client)
    except anthropic.APIStatusError as error:
        return _of_status(error, transport)
    except anthropic.APIConnectionError:
        return _of_failure(transport.failure)
    except Exception:  # noqa: BLE001 - whatever the SDK makes of an answer it cannot read
        return _UNEXPECTED
    return Validation(Verdict.VALID, organization_id=transport.organization_id, detail="ACCEPTED")


async def _call_both(client: anthropic.AsyncAnthropic) -> None:
    models = await client.models.list(limit=1)
    model = str(models.data[0].id)
    if not _NAME.match(model):
        raise _UnexpectedAnswer
    count = await client.messages.count_tokens(
        model=model, messages=[{"role": "user", "content": "."}]
    )
    tokens: object = count.input_tokens  # the SDK does not check what it was sent
    if not isinstance(tokens, int):
        raise _UnexpectedAnswer


def _of_status(error: anthropic.APIStatusError, transport: "_Transport") -> Validation:
    status = error.status_code
    refusal = _REFUSALS.get((status, str(error.type)))
    if refusal is not None:
        return Validation(refusal.verdict, transport.organization_id, refusal.detail)
    if status in _STATUS_DETAILS or status >= 500:
        detail = _STATUS_DETAILS.get(status, "SERVER_ERROR")
        return Validation(
            Verdict.UNVERIFIABLE,
            detail=detail,
            retry_after_s=_retry_after(error.response.headers.get("retry-after")),
        )
    return _UNEXPECTED


def _of_failure(failure: IronworkError | None) -> Validation:
    if failure is None or failure.reason in _UNEXPECTED_REASONS:
        return _UNEXPECTED
    return Validation(
        Verdict.UNVERIFIABLE, detail=failure.reason, retry_after_s=failure.retry_after_s
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds (RFC 9110 section 10.2.3), bounded; the date form is not taken."""
    if value is None or not _SECONDS.match(value):
        return None
    return min(float(value), _MAX_RETRY_AFTER_S)


class _LentKey:
    """core.ports.Injector over a Secret that its owner wipes."""

    def __init__(self, key: Secret) -> None:
        self._key = key

    @property
    def length(self) -> int:
        return len(self._key)

    def inject(self, target: memoryview) -> None:
        with self._key.reveal() as key:
            target[:] = key

    def discard(self) -> None:
        """Nothing is held that is not the owner's."""


class _Sent:
    sent = False


class _Transport(httpx2.AsyncBaseTransport):
    """httpx2's network is our upstream client; nothing but the two calls goes through.

    failure: what the upstream client raised last. organization_id: as the last answer named it.
    """

    def __init__(self, upstream: HttpUpstream, key: Secret) -> None:
        self._upstream = upstream
        self._key = key
        self.failure: IronworkError | None = None
        self.organization_id = ""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._send(request)
        except IronworkError as error:
            self.failure = error
            raise

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        parts = urlsplit(request.url.raw_path.decode("ascii"))
        if (request.method, parts.path) not in _TARGETS:
            raise _unexpected_target()
        body = await request.aread()
        screened = ScreenedRequest(
            method=request.method,
            path=parts.path,
            query=parts.query,
            headers=(*_HEADERS, _JSON) if body else _HEADERS,
            content_length=len(body) if body else None,
            has_body=bool(body),
            max_body=_MAX_REQUEST_BYTES,
            route="validation",
        )
        async with self._upstream.send(screened, _once(body), self._lend, _Sent()) as response:
            answer = bytearray()
            async for chunk in response.chunks():
                answer += chunk
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise _too_large()
            headers = httpx2.Headers(list(response.headers))
            self.organization_id = _organization(headers)
            # Not content-encoding: none was asked for, and nothing here shall inflate.
            kept = {name: headers[name] for name in _ANSWER_HEADERS if name in headers}
            return httpx2.Response(response.status, headers=kept, content=bytes(answer))

    async def _lend(self) -> Injector:
        return _LentKey(self._key)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


def _organization(headers: httpx2.Headers) -> str:
    """Listed and recorded, so that an answer which holds a credential there names nobody."""
    value = headers.get("anthropic-organization-id", "")
    return value if _NAME.match(value) and not looks_like_credential(value) else ""


def _unexpected_target() -> UpstreamFailed:
    return UpstreamFailed(
        "The validation wanted to call something else than its two paths.",
        reason="UPSTREAM_MALFORMED",
    )


def _too_large() -> UpstreamFailed:
    return UpstreamFailed("Anthropic's answer is too large.", reason="UPSTREAM_MALFORMED")
