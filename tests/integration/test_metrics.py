"""What a whole service tells in numbers."""

from __future__ import annotations

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fixtures.agent import Agent
from fixtures.server import ADMIN, AGENT, PARENT, STRANGER, StartService, TestService
from ironwork.keys.v1 import keys_pb2

CALL_S = 20.0
KEYS = "/ironwork.keys.v1.KeyService"


async def numbers(service: TestService) -> dict[tuple[str, ...], float]:
    """Every sample of the page: its name and its labels' values, sorted."""
    page = (await service.metrics()).partition("\r\n\r\n")[2]
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def test_calls_show_in_the_numbers(service: TestService) -> None:
    """A key added, a call answered, one refused, a stranger: each is counted where it belongs."""
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    answer = await agent.message()
    refused = await agent.call("GET", "/v1/organizations")
    assert refused.reason == "PATH_NOT_ALLOWED"
    with pytest.raises(grpc.aio.AioRpcError):
        await service.keys(STRANGER).ListMasked(
            keys_pb2.ListMaskedRequest(parent=PARENT), timeout=CALL_S
        )
    with pytest.raises(grpc.aio.AioRpcError):
        await service.keys("/nobody").ListMasked(
            keys_pb2.ListMaskedRequest(parent=PARENT), timeout=CALL_S
        )
    with pytest.raises(grpc.aio.AioRpcError):
        await service.channel(ADMIN).unary_unary("/no.Such/Method")(b"", timeout=CALL_S)
    found = await numbers(service)
    usage = answer.end.usage
    backend = service.settings.master_key.uris[0].partition("?")[0]
    expected = {
        ("ironwork_rpcs_total", f"{KEYS}/AddKey", "OK"): 1,
        ("ironwork_rpcs_total", f"{KEYS}/ListMasked", "PERMISSION_DENIED"): 1,
        ("ironwork_rpcs_total", f"{KEYS}/ListMasked", "UNAUTHENTICATED"): 1,
        ("ironwork_rpcs_total", "other", "PERMISSION_DENIED"): 1,
        ("ironwork_calls_total", "completed", "", "2xx"): 1,
        ("ironwork_calls_total", "refused", "PATH_NOT_ALLOWED", "none"): 1,
        ("ironwork_call_first_byte_seconds_count",): 1,
        ("ironwork_call_body_bytes_total", "down"): len(answer.body),
        ("ironwork_tokens_total", "acme", "input"): usage.input_tokens,
        ("ironwork_tokens_total", "acme", "output"): usage.output_tokens,
        ("ironwork_open", "streams"): 1,
        ("ironwork_open", "requests"): 0,
        ("ironwork_key_validations_total", "VALID"): 1,
        ("ironwork_refusals_total", "PERMISSION_DENIED"): 1,
        ("ironwork_refusals_total", "IDENTITY_UNMAPPED"): 1,
        ("ironwork_hsm_operations_total", backend, "hsm.probe", "ok"): 1,
        ("ironwork_store_operations_total", "add", "ok"): 1,
        ("ironwork_healthy", "hsm"): 1,
    }
    assert {key: found.get((key[0], *sorted(key[1:]))) for key in expected} == expected
    assert usage.input_tokens > 0
    assert found["ironwork_hsm_operations_total", "hsm.unwrap", "ok", backend] >= 2
    assert found["ironwork_journal_entries_total",] >= 10
    opened = found.get(("ironwork_upstream_requests_total", "opened"), 0)
    reused = found.get(("ironwork_upstream_requests_total", "reused"), 0)
    assert opened + reused == 3, "two of the validation, one of the call"
    assert found["ironwork_certificate_expiry_timestamp_seconds", "server"] > 1.7e9
    await agent.close()
    assert (await numbers(service))["ironwork_rpcs_total", f"{KEYS}/WithKey", "OK"] == 1


async def test_no_listener_where_none_is_wanted(start_service: StartService) -> None:
    """Metrics are off unless they are asked for."""
    service = await start_service(metrics={})
    assert service.service.metrics is None
