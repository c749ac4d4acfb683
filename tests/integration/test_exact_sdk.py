"""The same promise through the client's transports: what an HTTP library sends and gets over
WithKey, sync or async, is what it sends to Anthropic and gets from there.
"""

from __future__ import annotations

import pytest

from fixtures.exact import Case
from fixtures.exact_cases import BROKEN, MESSAGE, answers, requests
from fixtures.exact_http import ORIGIN, both, directly_by, through_by
from fixtures.libraries import LIBRARIES, Library
from fixtures.sdk import profile_of
from fixtures.server import AGENT, TestService

FACES = pytest.mark.parametrize(
    ("library", "sync"),
    [
        pytest.param(library, sync, id=f"{library.name}-{'sync' if sync else 'async'}")
        for library in LIBRARIES
        for sync in (True, False)
    ],
)


@FACES
async def test_a_library_over_with_key_sends_and_gets_what_it_does_directly(
    service: TestService, library: Library, *, sync: bool
) -> None:
    """Request by request, for every request and answer of fixtures/exact_cases.py."""
    key = service.simulator.make_key()
    await service.add(key)
    wrong: dict[str, object] = {}
    async with (
        directly_by(library, service.simulator, sync=sync) as direct,
        through_by(library, profile_of(service, AGENT, "agent"), sync=sync) as relayed,
    ):
        for case in (*requests(), *answers()):
            if found := await both(service.simulator, direct, relayed, key, case):
                wrong[case.name] = found
    assert wrong == {}


@FACES
async def test_a_broken_answer_is_never_a_whole_one(
    service: TestService, library: Library, *, sync: bool
) -> None:
    """What breaks off or is no HTTP raises the library's error; an answer that must not begin is
    an answer of the service's own, not to be repeated. Each request is sent once."""
    await service.add()
    got: dict[str, object] = {}
    before = len(service.simulator.requests)
    async with through_by(library, profile_of(service, AGENT, "agent"), sync=sync) as send:
        for name, (behaviour, _) in BROKEN.items():
            service.simulator.script(None, behaviour)
            try:
                answer = await send(ORIGIN, "held-by-ironwork", Case(name=name, body=MESSAGE))
            except library.http.TransportError as error:
                got[name] = type(error).__name__
            else:
                got[name] = (answer.status, answer.value(b"x-should-retry"))
    assert len(service.simulator.requests) - before == len(BROKEN)
    assert {name: what for name, what in got.items() if isinstance(what, tuple)} == {
        "an unknown coding": (503, b"false")
    }
    errors = {what for what in got.values() if isinstance(what, str)}
    assert errors == {"ReadError", "RemoteProtocolError"}
