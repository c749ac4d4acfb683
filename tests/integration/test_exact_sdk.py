"""The same promise through the client's transports: what httpx2 sends and gets over WithKey is what
it sends to Anthropic and gets from there.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import anthropic
import httpx2

from fixtures.exact import FRAMING, NOT_DELIVERED, Case
from fixtures.exact_cases import answers, requests
from fixtures.server import AGENT, TestService, spiffe
from ironwork_client import Profile, WithKeyTransport
from ironwork_server.app.devpki import write_client_profile
from ironwork_simulator import RequestRecord

# Written by httpx2 for its own connection, or new with every answer.
_OWN = FRAMING | {"connection", "accept-encoding"}
_PASSING = NOT_DELIVERED | {"date", "request-id", "cf-ray"}


def profile_of(service: TestService) -> Profile:
    file = write_client_profile(
        service.folder / "profiles",
        "agent",
        service.ca.client_certificate(spiffe(AGENT)),
        service.ca,
        target=service.target,
        workspace="acme",
    )
    return Profile.load(file)


@contextmanager
def direct(service: TestService) -> Iterator[httpx2.Client]:
    context = ssl.create_default_context(cafile=str(service.simulator.ca_file))
    with httpx2.Client(verify=context, trust_env=False) as client:
        yield client


@contextmanager
def relayed(service: TestService) -> Iterator[httpx2.Client]:
    with httpx2.Client(transport=WithKeyTransport(profile_of(service))) as client:
        yield client


def send(client: httpx2.Client, origin: str, key: str, case: Case) -> httpx2.Response:
    """The case's request, the answer's bytes undecoded."""
    content = iter([case.body or b""]) if case.chunked else case.body
    request = client.build_request(
        case.method,
        f"{origin}{case.target}",
        headers=[(name.encode(), value) for name, value in case.headers] + [(b"x-api-key", key)],
        content=content,
    )
    response = client.send(request, stream=True)
    response.extensions["raw"] = b"".join(response.iter_raw())
    response.close()
    return response


def seen(record: RequestRecord, response: httpx2.Response) -> dict[str, object]:
    unique = record.request_id[-22:].encode()
    raw: bytes = response.extensions["raw"]
    coded = "content-encoding" in response.headers
    return {
        "target": (record.method, record.target),
        "request headers": [(n, v) for n, v in record.headers if n.lower() not in _OWN],
        "request body": record.body_sha256,
        "key": record.key,
        "status": response.status_code,
        "headers": [
            (n, v)
            for n, v in response.headers.raw
            if n.decode().lower() not in _PASSING and b"ratelimit" not in n.lower()
            and (not coded or n.lower() != b"content-length")
        ],
        # Compressed ids differ: that these bytes are untouched is test_exact's to show.
        "body": coded or raw.replace(unique, b"*"),
        "as sent": (len(raw), response.headers["request-id"]),
    }  # fmt: skip


def compare(service: TestService, key: str) -> dict[str, object]:
    wrong: dict[str, object] = {}
    simulator = service.simulator
    with direct(service) as plain, relayed(service) as ours:
        for case in (*requests(), *answers()):
            both = []
            for client, origin, credential in (
                (plain, simulator.url, key),
                (ours, "https://api.anthropic.com", "placeholder"),
            ):
                if case.behaviour is not None:
                    simulator.script(None, case.behaviour)
                number = len(simulator.requests) + 1
                response = send(client, origin, credential, case)
                record = simulator.wait_for_end_blocking(number)
                found = seen(record, response)
                if found.pop("as sent") != (record.sent_length, record.request_id):
                    wrong[case.name] = "not what the log says was sent"
                both.append(found)
            differing = {n: (both[0][n], both[1][n]) for n in both[0] if both[0][n] != both[1][n]}
            if differing:
                wrong[case.name] = differing
    return wrong


async def test_httpx2_over_with_key_sends_and_gets_what_it_does_directly(
    service: TestService,
) -> None:
    """The tables of fixtures/exact_cases.py, through the sync transport."""
    key = service.simulator.make_key()
    await service.add(key)
    assert await asyncio.to_thread(compare, service, key) == {}


def batches_and_files(service: TestService) -> None:
    params = {
        "model": "claude-haiku-5-5",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": "hi"}],
    }
    data = os.urandom(2_000_003)
    with relayed(service) as http, anthropic.Anthropic(api_key="x", http_client=http) as sdk:
        batch = sdk.messages.batches.create(requests=[{"custom_id": "a", "params": params}])
        assert batch.processing_status == "in_progress"
        ended = sdk.messages.batches.retrieve(batch.id)
        assert (
            ended.results_url == f"https://api.anthropic.com/v1/messages/batches/{batch.id}/results"
        )
        [result] = sdk.messages.batches.results(batch.id)
        assert result.result.type == "succeeded"
        assert [b.id for b in sdk.messages.batches.list(limit=1)] == [batch.id]
        assert sdk.messages.batches.delete(batch.id).type == "message_batch_deleted"
        unfinished = sdk.messages.batches.create(requests=[{"custom_id": "b", "params": params}])
        assert sdk.messages.batches.cancel(unfinished.id).processing_status == "canceling"
        file = sdk.beta.files.upload(file=("r.bin", data, "application/octet-stream"))
        assert file.size_bytes == len(data)
        assert sdk.beta.files.download(file.id).read() == data
        assert sdk.beta.files.retrieve_metadata(file.id).filename == "r.bin"
        assert [f.id for f in sdk.beta.files.list()] == [file.id]
        assert sdk.beta.files.delete(file.id).type == "file_deleted"


async def test_the_sdks_batches_and_files_work(service: TestService) -> None:
    """Batches with the absolute results_url, and files of random bytes, by the unmodified SDK."""
    await service.add()
    await asyncio.to_thread(batches_and_files, service)
