"""Requests that pass, and tricks that do not."""

import re
from collections.abc import Callable

import anthropic
import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fixtures.tricks import (
    MALFORMED_PATHS,
    PASSING_QUERIES,
    REFUSED_METHODS,
    REFUSED_QUERIES,
    UNLISTED_PATHS,
)
from ironwork_server.core.errors import InvalidRequest
from ironwork_server.core.routes import KNOWN_GROUPS, RouteTable
from ironwork_server.core.screening import screen
from ironwork_server.core.values import ScreenedRequest

ROUTES = RouteTable()
JSON = ("content-type", b"application/json")


def ask(
    method: str = "POST",
    path: str = "/v1/messages",
    query: str = "",
    headers: tuple[tuple[str, bytes], ...] = (JSON,),
    content_length: int | None = 2,
    routes: RouteTable = ROUTES,
) -> ScreenedRequest:
    return screen(
        method=method,
        path=path,
        query=query,
        headers=headers,
        content_length=content_length,
        routes=routes,
    )


def refusal(**request: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        ask(**request)
    error = caught.value
    assert error.violations
    assert error.metadata["field"] == error.violations[0].field
    return error


def test_a_request_passes_as_it_is() -> None:
    """What passes is what was given, with the path's bound and name beside it."""
    passed = ask(
        query="beta=true",
        headers=(JSON, ("Anthropic-Beta", b"a,b"), ("anthropic-beta", b"c")),
        content_length=120,
    )
    assert passed == ScreenedRequest(
        method="POST",
        path="/v1/messages",
        query="beta=true",
        headers=(
            (b"content-type", b"application/json"),
            (b"Anthropic-Beta", b"a,b"),
            (b"anthropic-beta", b"c"),
        ),
        content_length=120,
        has_body=True,
        max_body=32 * 1024 * 1024,
        route="messages",
    )


@pytest.mark.parametrize(
    ("method", "path", "content_length", "has_body", "expected"),
    [
        ("POST", "/v1/messages", None, True, None),
        ("POST", "/v1/messages", 0, True, 0),
        ("POST", "/v1/messages/batches/b1/cancel", None, True, None),
        ("GET", "/v1/models", None, False, None),
        ("GET", "/v1/models", 0, False, None),
        ("HEAD", "/v1/messages", None, False, None),
        ("DELETE", "/v1/files/f1", 0, False, None),
    ],
)
def test_bodies(
    method: str, path: str, content_length: int | None, has_body: bool, expected: int | None
) -> None:
    """POST has a body, of a length told beforehand or not; no other method has one."""
    passed = ask(method, path, content_length=content_length)
    assert (passed.has_body, passed.content_length) == (has_body, expected)


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/messages", 32 * 2**20),
        ("/v1/messages/count_tokens", 32 * 2**20),
        ("/v1/messages/batches", 256 * 2**20),
        ("/v1/files", 500 * 2**20),
        ("/v1/messages/batches/b1/cancel", 2**20),
    ],
)
def test_bodies_are_bounded(path: str, limit: int) -> None:
    """A body may be as long as its path's bound, and no byte longer."""
    assert ask(path=path, content_length=limit).max_body == limit
    error = refusal(path=path, content_length=limit + 1)
    assert error.reason == "BODY_TOO_LARGE"
    assert error.metadata == {"field": "content_length", "max_bytes": str(limit)}


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_only_post_has_a_body(method: str) -> None:
    """A length above 0 with another method is refused."""
    assert (
        refusal(method=method, path="/v1/files/f1", content_length=1).reason == "BODY_NOT_ALLOWED"
    )


def test_no_negative_length() -> None:
    """A negative length is no length."""
    assert refusal(content_length=-1).reason == "INVALID_FIELD"


@pytest.mark.parametrize(("method", "path", "allowed"), REFUSED_METHODS)
def test_methods(method: str, path: str, allowed: str) -> None:
    """A path takes its own methods, in their exact spelling, and a refusal lists them."""
    error = refusal(method=method, path=path)
    assert error.reason == "METHOD_NOT_ALLOWED"
    assert error.metadata == {"field": "method", "allowed": allowed}


@pytest.mark.parametrize("path", MALFORMED_PATHS)
def test_malformed_paths(path: str) -> None:
    """A path with a second reading anywhere is refused by its syntax, whatever is listed."""
    error = refusal(path=path, routes=RouteTable(KNOWN_GROUPS))
    assert error.reason == "PATH_MALFORMED"
    assert error.metadata == {"field": "path"}
    assert "evil" not in str(error)


@pytest.mark.parametrize("path", UNLISTED_PATHS)
def test_unlisted_paths(path: str) -> None:
    """A well-formed path that is not on the list is refused, whatever groups are on."""
    for routes in (ROUTES, RouteTable(KNOWN_GROUPS)):
        error = refusal(path=path, routes=routes)
        assert error.reason == "PATH_NOT_ALLOWED"
        assert error.metadata == {"field": "path"}


def test_a_group_that_is_off_is_named() -> None:
    """A path of a group that is off is refused with the group's name, for the operator."""
    error = refusal(path="/v1/skills")
    assert error.reason == "PATH_NOT_ALLOWED"
    assert error.metadata == {"field": "path", "group": "skills"}
    assert (
        ask("GET", "/v1/skills", content_length=None, routes=RouteTable({"skills"})).has_body
        is False
    )


@pytest.mark.parametrize("query", PASSING_QUERIES)
def test_queries_that_pass(query: str) -> None:
    """A query of RFC 3986 passes as it is."""
    assert ask(query=query).query == query


@pytest.mark.parametrize("query", REFUSED_QUERIES)
def test_queries_that_do_not(query: str) -> None:
    """Any other character, or one too many, is refused."""
    error = refusal(query=query)
    assert error.reason == "QUERY_MALFORMED"
    assert error.metadata == {"field": "query"}


ALPHABET = "/v1messagodlcunt_bhif.%2eEfF5cC0?#@;:\\ \r\n-[]AZé"
near_paths = st.one_of(
    st.text(alphabet=ALPHABET, max_size=40).map(lambda tail: "/v1/" + tail),
    st.text(alphabet=ALPHABET, max_size=12).map(lambda tail: "/v1/models/" + tail),
    st.text(alphabet=ALPHABET, max_size=12).map(lambda tail: f"/v1/files/{tail}/content"),
    st.sampled_from(["/v1/messages", "/v1/models", "/v1/messages/count_tokens"]),
    st.text(max_size=20),
)
STRICT = re.compile(
    r"/v1/(messages(/count_tokens|/batches(/ID(/cancel|/results)?)?)?|models(/ID)?"
    r"|files(/ID(/content)?)?)".replace(
        "ID", r"[A-Za-z0-9_:-](?:[A-Za-z0-9_.:-]|%(?:3A|5B|5D|2B|3D|2C))*"
    ),
    re.IGNORECASE,
)


@example(method="GET", path="/v1/models/a%5B1m%5D", query="", headers=[], content_length=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "DELETE"]),
    path=near_paths,
    query=st.one_of(st.just("beta=true"), st.text(alphabet="a=&%2é#\n", max_size=8)),
    headers=st.lists(
        st.tuples(
            st.text(alphabet="axi-_key:\n ", min_size=1, max_size=10), st.binary(max_size=12)
        ),
        max_size=3,
    ),
    content_length=st.one_of(st.none(), st.integers(-1, 2**30)),
)
def test_what_passes_is_what_was_given(
    method: str,
    path: str,
    query: str,
    headers: list[tuple[str, bytes]],
    content_length: int | None,
) -> None:
    """Whatever passes is the given bytes, and fits an independent, stricter grammar."""
    try:
        passed = ask(method, path, query, tuple(headers), content_length)
    except InvalidRequest:
        return
    assert (passed.method, passed.path, passed.query) == (method, path, query)
    assert STRICT.fullmatch(path) or path.startswith(
        ("/v1/models/%", "/v1/files/%", "/v1/messages/batches/%")
    )
    assert path == path.encode("ascii").decode()
    assert list(passed.headers) == [(name.encode(), value) for name, value in headers]
    for name, value in passed.headers:
        assert re.fullmatch(rb"[a-z_-]+", name)
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)
    assert 0 <= (passed.content_length or 0) <= passed.max_body


def sdk_calls() -> dict[str, Callable[[anthropic.Anthropic], object]]:
    message = {"role": "user", "content": "hi"}
    create = {"model": "claude-opus-4-5", "max_tokens": 1, "messages": [message]}
    return {
        "messages": lambda sdk: sdk.messages.create(**create),
        "stream": lambda sdk: sdk.messages.create(**create, stream=True),
        "beta messages": lambda sdk: sdk.beta.messages.create(**create, betas=["a", "b"]),
        "count_tokens": lambda sdk: sdk.messages.count_tokens(
            model="claude-opus-4-5", messages=[message]
        ),
        "models": lambda sdk: sdk.models.list(limit=3, after_id="claude:é/&?"),
        "model": lambda sdk: sdk.models.retrieve("claude-opus-4-5"),
        "model alias": lambda sdk: sdk.models.retrieve("claude-opus-4-5[1m]"),
        "batch": lambda sdk: sdk.messages.batches.create(
            requests=[{"custom_id": "1", "params": create}]
        ),
        "batches": lambda sdk: sdk.messages.batches.list(limit=5),
        "batch state": lambda sdk: sdk.messages.batches.retrieve("msgbatch_01"),
        "batch cancel": lambda sdk: sdk.messages.batches.cancel("msgbatch_01"),
        "batch delete": lambda sdk: sdk.messages.batches.delete("msgbatch_01"),
        "upload": lambda sdk: sdk.beta.files.upload(file=("a.txt", b"x", "text/plain")),
        "files": lambda sdk: sdk.beta.files.list(),
        "file": lambda sdk: sdk.beta.files.retrieve_metadata("file_01"),
        "download": lambda sdk: sdk.beta.files.download("file_01"),
        "file delete": lambda sdk: sdk.beta.files.delete("file_01"),
    }


@pytest.mark.parametrize("call", sdk_calls().values(), ids=sdk_calls())
def test_the_unmodified_sdk_passes(call: Callable[[anthropic.Anthropic], object]) -> None:
    """Every default call of the anthropic package passes, once its transport has taken off what
    belongs to its own connection and its placeholder credential.
    """
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        request.read()
        requests.append(request)
        return httpx2.Response(400, json={"type": "error"})

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as http,
        anthropic.Anthropic(
            api_key="placeholder",
            base_url="https://api.anthropic.com",
            http_client=http,
            max_retries=0,
        ) as sdk,
        pytest.raises(anthropic.BadRequestError),
    ):
        call(sdk)
    [request] = requests
    path, _, query = request.url.raw_path.decode("ascii").partition("?")
    own = {"host", "connection", "content-length", "transfer-encoding", "authorization"}
    headers = [
        (name.decode("ascii"), value)
        for name, value in request.headers.raw
        if name.decode().lower() not in own
    ]
    passed = ask(request.method, path, query, tuple(headers), len(request.content) or None)
    assert (passed.path, passed.query) == (path, query)
    assert len(passed.headers) == len(headers)
