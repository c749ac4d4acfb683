"""What Anthropic says of a key, asked twice and read from status and error.type alone."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.core.secret import Secret
from ironwork_server.core.values import Validation, Verdict
from ironwork_server.upstream import HttpUpstream, silence_http_loggers
from ironwork_server.upstream.validator import AnthropicKeyValidator, _retry_after, _Transport
from unit.upstream.raw_server import RawServer
from unit.upstream.sending import KEY

ORGANIZATION = b"5f0c6c1e-9b1d-4c57-8f0e-2f3b8a7d6c10"
MODELS = {"data": [{"type": "model", "id": "claude-x-1", "display_name": "X"}], "has_more": False}
COUNT = {"input_tokens": 8}


def answer(status: int, body: object, *headers: bytes) -> bytes:
    """An answer as Anthropic gives it, with an organisation."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        b"HTTP/1.1 %d X" % status,
        b"content-type: application/json",
        b"anthropic-organization-id: " + ORGANIZATION,
        b"content-length: %d" % len(content),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


def error(status: int, kind: str, *headers: bytes) -> bytes:
    body = {"type": "error", "error": {"type": kind, "message": "words that may change"}}
    return answer(status, body, *headers)


GOOD = (answer(200, MODELS), answer(200, COUNT))


async def validated(
    server: RawServer, upstream: HttpUpstream, *answers: bytes, deadline_s: float = 15.0
) -> Validation:
    """The verdict on KEY when the server gives these answers in turn."""

    async def serve() -> None:
        connection = await server.connection()
        for number, data in enumerate(answers, 1):
            await connection.head(number)
            connection.send(data)

    serving = asyncio.create_task(serve())
    with Secret(KEY) as key:
        validator = AnthropicKeyValidator(upstream, deadline_s=deadline_s)
        validation = await validator.validate(key)
    serving.cancel()
    return validation


async def test_a_valid_key_is_asked_about_twice_and_nothing_else_is_sent(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Two requests that cost no tokens, byte for byte, with the key in x-api-key alone."""
    assert await validated(server, upstream, *GOOD) == Validation(
        Verdict.VALID, organization_id=ORGANIZATION.decode(), detail="ACCEPTED"
    )
    connection = await server.connection()
    received = await connection.until(lambda data: data.endswith(b"}"))
    host = server.endpoint.authority.encode()
    headers = (
        b"accept: application/json\r\n"
        b"anthropic-version: 2023-06-01\r\n"
        b"user-agent: ironwork-keys\r\n"
    )
    first = (
        b"GET /v1/models?limit=1 HTTP/1.1\r\nHost: "
        + host
        + b"\r\n"
        + headers
        + b"x-api-key: "
        + KEY
        + b"\r\n\r\n"
    )
    assert received.startswith(first)
    head, _, body = received[len(first) :].partition(b"\r\n\r\n")
    assert head == (
        b"POST /v1/messages/count_tokens HTTP/1.1\r\nHost: "
        + host
        + b"\r\n"
        + headers
        + b"content-type: application/json\r\nContent-Length: %d\r\nx-api-key: " % len(body)
        + KEY
    )
    assert json.loads(body) == {
        "model": "claude-x-1",
        "messages": [{"role": "user", "content": "."}],
    }
    assert len(server.connections) == 1


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(
    ("refusal", "verdict", "detail", "retry_after_s"),
    [
        (error(401, "authentication_error"), Verdict.INVALID, "AUTHENTICATION_ERROR", None),
        (error(403, "permission_error"), Verdict.WITHOUT_PERMISSION, "PERMISSION_ERROR", None),
        (error(402, "billing_error"), Verdict.UNVERIFIABLE, "BILLING_ERROR", None),
        (
            error(429, "rate_limit_error", b"retry-after: 7"),
            Verdict.UNVERIFIABLE,
            "RATE_LIMITED",
            7.0,
        ),
        (
            error(529, "overloaded_error", b"retry-after: 99999"),
            Verdict.UNVERIFIABLE,
            "OVERLOADED",
            300.0,
        ),
        (error(500, "api_error"), Verdict.UNVERIFIABLE, "SERVER_ERROR", None),
        (answer(503, b"<html>"), Verdict.UNVERIFIABLE, "SERVER_ERROR", None),
        (error(504, "timeout_error"), Verdict.UNVERIFIABLE, "SERVER_ERROR", None),
        (error(401, "api_error"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(401, b"<html>"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(403, b""), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(403, {"error": ["x"]}), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (error(403, "forbidden"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (error(404, "not_found_error"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (error(400, "authentication_error"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(200, b"<html>"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(200, b"null"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(200, b"[]"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(200, {}), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(204, b""), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(302, b"", b"location: /"), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (b"nonsense\r\n\r\n", Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
        (answer(200, b" " * 1_100_000), Verdict.UNVERIFIABLE, "UNEXPECTED_ANSWER", None),
    ],
)
async def test_the_verdict_is_from_status_and_type(  # noqa: PLR0917 - a table's columns
    refusal: bytes,
    verdict: Verdict,
    detail: str,
    retry_after_s: float | None,
    position: int,
    plain_server: RawServer,
    make_upstream: Callable[..., HttpUpstream],
) -> None:
    """Whichever of the two calls it meets, an answer leads to the same verdict and detail."""
    answers = (refusal,) if position == 0 else (GOOD[0], refusal)
    validation = await validated(plain_server, make_upstream(plain_server), *answers)
    assert validation.verdict is verdict
    assert (validation.detail, validation.retry_after_s) == (detail, retry_after_s)
    heads = plain_server.connections[0].received.count(b"HTTP/1.1\r\n")
    assert heads == position + 1, "nothing is retried"


@pytest.mark.parametrize(
    "models",
    [
        {"data": []},
        {"data": [{}]},
        {"data": [{"id": None}]},
        {"data": [{"id": "a b"}]},
        {"data": [{"id": "x" * 200}]},
        {"data": "claude"},
    ],
)
async def test_models_that_make_no_sense_are_unexpected(
    models: object, plain_server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A key that is shown no usable model cannot be verified; nothing strange is sent back."""
    answers = (answer(200, models), answer(404, {}))
    validation = await validated(plain_server, make_upstream(plain_server), *answers)
    assert validation == Validation(Verdict.UNVERIFIABLE, detail="UNEXPECTED_ANSWER")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(ORGANIZATION, ORGANIZATION.decode()), (b"caf\xe9", ""), (b"a b", ""), (b"x" * 200, "")],
)
async def test_the_organisation_is_the_last_answers(
    value: bytes,
    expected: str,
    plain_server: RawServer,
    make_upstream: Callable[..., HttpUpstream],
) -> None:
    """The organisation of the second answer counts, if it is a short plain name."""
    second = GOOD[1].replace(ORGANIZATION, value)
    first = GOOD[0].replace(ORGANIZATION, b"another")
    validation = await validated(plain_server, make_upstream(plain_server), first, second)
    assert (validation.verdict, validation.organization_id) == (Verdict.VALID, expected)


async def test_a_cut_answer_is_unverifiable(server: RawServer, upstream: HttpUpstream) -> None:
    """A connection that breaks says nothing about a key."""
    with Secret(KEY) as key:
        task = asyncio.create_task(AnthropicKeyValidator(upstream).validate(key))
        connection = await server.connection()
        await connection.head()
        connection.send_reset()
        assert await task == Validation(Verdict.UNVERIFIABLE, detail="UPSTREAM_CUT")


async def test_a_host_that_is_away_is_unverifiable(
    plain_server: RawServer, make_upstream: Callable[..., HttpUpstream], authority: object
) -> None:
    """What could not be sent may be tried again soon."""
    plain_server._authority = authority  # TLS to a server that speaks none
    upstream = make_upstream(plain_server)
    with Secret(KEY) as key:
        task = asyncio.create_task(AnthropicKeyValidator(upstream).validate(key))
        (await plain_server.connection()).close()
        validation = await task
    assert validation == Validation(
        Verdict.UNVERIFIABLE, detail="UPSTREAM_TLS_FAILED", retry_after_s=1.0
    )


async def test_both_calls_share_one_deadline(server: RawServer, upstream: HttpUpstream) -> None:
    """A server that answers one call and hangs in the other is TIMEOUT, and loses its client."""
    validation = await validated(server, upstream, GOOD[0], deadline_s=0.5)
    assert validation == Validation(Verdict.UNVERIFIABLE, detail="TIMEOUT")
    await server.connections[0].disconnected.wait()


async def test_a_cancelled_validation_ends_its_connection(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Cancelling is not turned into a verdict."""
    with Secret(KEY) as key:
        task = asyncio.create_task(AnthropicKeyValidator(upstream).validate(key))
        connection = await server.connection()
        await connection.head()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await connection.disconnected.wait()


@pytest.fixture
def hostile_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_server: RawServer
) -> None:
    """Every variable of the SDK and of its HTTP library that could redirect or decorate."""
    elsewhere = f"http://127.0.0.1:{plain_server.port}"
    variables = {
        "ANTHROPIC_API_KEY": "sk-ant-api03-of-the-environment",
        "ANTHROPIC_AUTH_TOKEN": "token-of-the-environment",
        "ANTHROPIC_BASE_URL": elsewhere,
        "ANTHROPIC_CUSTOM_HEADERS": "x-api-key: other\nanthropic-version: 1999-01-01\nx-more: 1\n"
        "host: other.example\nauthorization: Bearer other",
        "ANTHROPIC_WEBHOOK_SIGNING_KEY": "whsec_other",
        "ANTHROPIC_PROFILE": "other",
        "ANTHROPIC_CONFIG_DIR": str(tmp_path),
        "ANTHROPIC_IDENTITY_TOKEN": "other",
        "ANTHROPIC_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "ANTHROPIC_FEDERATION_RULE_ID": "other",
        "ANTHROPIC_ORGANIZATION_ID": "other",
        "ANTHROPIC_LOG": "debug",
        "ANTHROPIC_OPEN_TELEMETRY": "true",
        "ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE": "content",
        "SSLKEYLOGFILE": str(tmp_path / "keys.log"),
    }
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        variables[name] = variables[name.lower()] = elsewhere
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("hostile_environment")
async def test_the_environment_does_not_count(
    tls_server: RawServer,
    plain_server: RawServer,
    make_upstream: Callable[..., HttpUpstream],
    tmp_path: Path,
) -> None:
    """No variable of the SDK changes where a validation goes or what it sends."""
    validation = await validated(tls_server, make_upstream(tls_server), *GOOD)
    assert validation.verdict is Verdict.VALID
    received = tls_server.connections[0].received
    assert received.count(b"x-api-key: " + KEY) == 2
    assert received.count(b"anthropic-version: 2023-06-01") == 2
    for foreign in (b"other", b"1999", b"environment", b"x-more", b"authorization", b"Bearer"):
        assert foreign not in received
    assert plain_server.connections == []
    assert not (tmp_path / "keys.log").exists()


@pytest.fixture
def loud_loggers() -> Iterator[None]:
    """All loggers at DEBUG, as a careless configuration would have them; restored afterwards."""
    names = ("anthropic", "httpx2", "httpcore2", "hpack", "h11", "h2")
    loggers = [logging.getLogger(name) for name in names]
    state = [(item, item.level, item.propagate, item.handlers[:]) for item in loggers]
    for item in loggers:
        item.setLevel(logging.DEBUG)
        item.propagate = True
    yield
    for item, level, propagate, handlers in state:
        item.setLevel(level)
        item.propagate = propagate
        item.handlers = handlers


@pytest.mark.usefixtures("loud_loggers")
@pytest.mark.parametrize("answers", [GOOD, (error(401, "authentication_error"),), (b"x\r\n\r\n",)])
async def test_nothing_that_is_logged_holds_the_key(
    answers: tuple[bytes, ...],
    server: RawServer,
    upstream: HttpUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Even at DEBUG, with nothing silenced, no record has the key: the libraries never see it."""
    asyncio.get_running_loop().set_debug(True)
    with caplog.at_level(logging.DEBUG):
        await validated(server, upstream, *answers)
    assert caplog.records, "the loggers were loud"
    for record in caplog.records:
        text = f"{record.getMessage()} {record.args!r} {record.exc_text} {record.__dict__!r}"
        assert KEY.decode() not in text
        assert KEY.decode()[-12:] not in text


@pytest.mark.usefixtures("loud_loggers")
async def test_silenced_libraries_log_nothing(
    server: RawServer, upstream: HttpUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """After silence_http_loggers no record of theirs arrives, not from a child set to DEBUG."""
    silence_http_loggers()
    child = logging.getLogger("anthropic._base_client")
    child.setLevel(logging.DEBUG)
    try:
        with caplog.at_level(logging.DEBUG):
            await validated(server, upstream, *GOOD)
    finally:
        child.setLevel(logging.NOTSET)
    foreign = [record.name for record in caplog.records if not record.name.startswith("asyncio")]
    assert foreign == []


async def test_a_validation_calls_its_two_paths_only(upstream: HttpUpstream) -> None:
    """Whatever the SDK might do of its own, another path does not leave the process."""
    with Secret(KEY) as key:
        validator = AnthropicKeyValidator(upstream)
        client = validator._client(_Transport(upstream, key))
        with pytest.raises(Exception, match="Connection error"):
            await client.get("/v1/organizations/me", cast_to=object)
        await client.close()
    assert upstream.connections == (0, 0)


@given(st.one_of(st.none(), st.text(), st.from_regex(r"[0-9.]{1,20}")))
def test_retry_after_is_a_bounded_number_or_nothing(value: str | None) -> None:
    """Whatever the header holds, the hint lies between 0 and 300 seconds."""
    seconds = _retry_after(value)
    assert seconds is None or 0 <= seconds <= 300
