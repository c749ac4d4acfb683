"""Files, batches, and bodies in other shapes, straight from the simulator."""

import hashlib
import json
import ssl
import zlib
from collections.abc import Iterator

import anthropic
import httpx2
import pytest

from fixtures.raw_http import RawConnection
from fixtures.simulator import TestSimulator
from ironwork_simulator import Behaviour, Simulator
from ironwork_simulator.errors import ApiError
from ironwork_simulator.filling import filling, filling_sha256
from ironwork_simulator.multipart import parse_form

VERSION = "anthropic-version: 2023-06-01"
FORM = "multipart/form-data; boundary=b"


@pytest.fixture
def client(simulator: TestSimulator) -> Iterator[anthropic.Anthropic]:
    """The SDK with a valid key, without retries."""
    context = ssl.create_default_context(cafile=str(simulator.ca_file))
    with httpx2.Client(verify=context, trust_env=False) as http:
        yield anthropic.Anthropic(
            api_key=simulator.make_key(), base_url=simulator.url, max_retries=0, http_client=http
        )


def test_a_file_is_kept_byte_for_byte(client: anthropic.Anthropic) -> None:
    """What was uploaded is listed, described, downloaded unchanged, and gone once deleted."""
    data = bytes(range(256)) * 1000 + b"\r\n--b--\r\n"
    files = [client.beta.files.upload(file=(f"f{n}", data)) for n in range(3)]
    assert files[0].size_bytes == len(data)
    assert client.beta.files.download(files[1].id).read() == data
    assert [f.id for f in client.beta.files.list(limit=1)] == [f.id for f in reversed(files)]
    client.beta.files.delete(files[1].id)
    with pytest.raises(anthropic.NotFoundError):
        client.beta.files.retrieve_metadata(files[1].id)


def test_a_batch_belongs_to_its_organization(
    simulator: TestSimulator, client: anthropic.Anthropic
) -> None:
    """Another organisation's key finds neither the batch nor its results."""
    body = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}  # fmt: skip # noqa: E501
    batch = client.messages.batches.create(requests=[{"custom_id": "a", "params": body}])
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.delete(batch.id)
    other = client.with_options(api_key=simulator.make_key(organization_id="another"))
    with pytest.raises(anthropic.NotFoundError):
        other.messages.batches.retrieve(batch.id)
    assert client.messages.batches.retrieve(batch.id).request_counts.succeeded == 1


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain", b"--b--"),
        ("multipart/form-data", b"--b--"),
        (FORM, b""),
        (FORM, b"--b\r\n"),
        (FORM, b"--b\r\nno head\r\n--b--"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\ncut'),
        (FORM, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--"),
    ],
)
def test_a_form_that_is_none_is_refused(content_type: str, body: bytes) -> None:
    """A body without boundary, heads, names or end is a 400."""
    with pytest.raises(ApiError, match="400"):
        parse_form(content_type, body)


@pytest.fixture
def ask(plain_simulator: Simulator) -> Iterator[RawConnection]:
    with RawConnection(plain_simulator.host, plain_simulator.port) as connection:
        yield connection


def models(connection: RawConnection, simulator: Simulator, behaviour: Behaviour) -> None:
    simulator.script(None, behaviour)
    connection.request("GET /v1/models", VERSION, f"x-api-key: {simulator.make_key()}")


@pytest.mark.parametrize(("encoding", "window"), [("gzip", 31), ("deflate", 15)])
def test_bodies_can_be_compressed(
    plain_simulator: Simulator, ask: RawConnection, encoding: str, window: int
) -> None:
    """A compressed answer says so, and its log has the bytes as they were sent."""
    models(ask, plain_simulator, Behaviour(encoding=encoding, framing="chunked", drip=100))  # type: ignore[arg-type]
    response = ask.response()
    assert response.value("content-encoding") == encoding
    assert json.loads(zlib.decompress(response.body, wbits=window))["data"]
    record = plain_simulator.wait_for_end_blocking()
    assert record.sent_body == response.body
    assert record.sent_head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert record.received_head.startswith(
        b"GET /v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n"
    )


def test_a_filling_is_as_long_as_it_says_and_logged_by_its_digest(
    plain_simulator: Simulator, ask: RawConnection
) -> None:
    """A bulk body goes with its length; the log keeps its digest and not the bytes."""
    models(ask, plain_simulator, Behaviour(fill=200_001))
    response = ask.response()
    assert (len(response.body), response.values("transfer-encoding")) == (200_001, [])
    assert response.body == b"".join(filling(200_001))
    record = plain_simulator.wait_for_end_blocking()
    assert (record.sent_body, record.sent_sha256) == (None, filling_sha256(200_001))
    assert record.sent_sha256 == hashlib.sha256(response.body).hexdigest()


def test_an_answer_can_end_with_its_connection(
    plain_simulator: Simulator, ask: RawConnection
) -> None:
    """Neither length nor chunks: the FIN is the end."""
    models(ask, plain_simulator, Behaviour(framing="eof", body="to the end"))
    response = ask.response()
    assert (response.body, ask.closed, ask.reset) == (b"to the end", True, False)
    assert response.values("content-length") == response.values("transfer-encoding") == []


def test_204_has_no_body_and_no_length(plain_simulator: Simulator, ask: RawConnection) -> None:
    """A 204 leaves the connection usable."""
    for _ in range(2):
        models(ask, plain_simulator, Behaviour(status=204))
        response = ask.response()
        assert (response.status, response.values("content-length")) == (204, [])


def test_interim_answers_trailers_and_wrong_lengths(
    plain_simulator: Simulator, ask: RawConnection
) -> None:
    """1xx heads come first, trailers last, and a length can lie."""
    models(ask, plain_simulator, Behaviour(interim=(103,), trailers=(("x-t", "1"),), body="ab"))
    assert ask.response().status == 103
    assert ask.response().status == 200
    models(ask, plain_simulator, Behaviour(body="ab", declared_length=9))
    response = ask.response()
    assert (response.body, response.complete) == (b"ab", False)


def test_a_head_can_drip_and_never_end(plain_simulator: Simulator, ask: RawConnection) -> None:
    """A dripped head is whole at last; an endless one goes on for as long as it is read."""
    models(ask, plain_simulator, Behaviour(drip_head=True))
    assert ask.response().status == 200
    models(ask, plain_simulator, Behaviour(endless_headers=True))
    assert len(ask.exactly(300_000)) == 300_000
    ask.close()
    assert plain_simulator.disconnected_blocking(2).sent_length == 0
