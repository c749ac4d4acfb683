"""The sync transport over a real gRPC stream."""

import httpx2
import pytest

from ironwork_client import Profile, WithKeyTransport
from unit.client import scripted_server as scripted
from unit.client.scripted_server import body, end, head

pytestmark = pytest.mark.usefixtures("no_thread_left")
URL = "https://api.anthropic.com/v1/messages"


def test_a_request_and_its_answer_pass_unchanged(
    profile: Profile, scripted_server: scripted.ScriptedServer
) -> None:
    """Method, raw path, query, headers and body arrive as they were; so does the answer."""
    calls: list[scripted.Call] = []

    def reply(call: scripted.Call):
        calls.append(call)
        yield head(call.number, 200, ("Request-Id", b"req_1"))
        yield body(call.number, b"hello ")
        yield body(call.number, b"world")
        yield end(call.number)

    scripted_server.script = scripted.serve(reply)
    with httpx2.Client(transport=WithKeyTransport(profile)) as client:
        for number in (1, 2, 3):
            response = client.post(f"{URL}?beta=true&x=%2F", content=b"question")
            assert (response.status_code, response.content) == (200, b"hello world")
            assert response.extensions["ironwork"].key_mask == "sk-ant-api…wxyz"
            assert calls[-1].number == number
    assert len(scripted_server.streams) == 1
