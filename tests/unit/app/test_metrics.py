"""What the numbers are, and what can never be in a label."""

import asyncio
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ironwork_server.app import metrics
from ironwork_server.app.metrics import PrometheusMeter
from ironwork_server.app.metrics_parts import MeteredJournal, MeteredStore
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.meter import SILENT, CallFigures, measured
from ironwork_server.core.ports import KeyExists, TooManyKeys
from ironwork_server.core.values import Usage, Verdict


def value(meter: PrometheusMeter, name: str, **labels: str) -> float | None:
    return meter.registry.get_sample_value(f"ironwork_{name}", labels)


def test_a_call_is_counted_with_all_that_is_known_of_it() -> None:
    """Outcome, reason, status class, bytes, time and tokens as Anthropic reported them."""
    meter = PrometheusMeter(workspaces=["acme"])
    figures = CallFigures("acme", perf_counter(), "completed", "", 200, 0.2, 10, 2000)
    figures.usage = Usage(1, 2, 3, 4)
    meter.call(figures, 1.5)
    labels = {"outcome": "completed", "reason": "", "status": "2xx"}
    assert value(meter, "calls_total", **labels) == 1
    assert value(meter, "call_duration_seconds_sum", outcome="completed") == 1.5
    assert value(meter, "call_first_byte_seconds_sum") == 0.2
    assert value(meter, "call_body_bytes_total", direction="up") == 10
    assert value(meter, "call_body_bytes_total", direction="down") == 2000
    for kind, count in (("input", 1), ("output", 2), ("cache_creation", 3), ("cache_read", 4)):
        assert value(meter, "tokens_total", workspace="acme", kind=kind) == count


@pytest.mark.parametrize("status", [0, 99, 600, 1000])
def test_what_is_no_status_has_no_class(status: int) -> None:
    """A call that got no answer counts as none."""
    meter = PrometheusMeter()
    meter.call(CallFigures("acme", 0.0, "failed", "UPSTREAM_CUT", status), 1.0)
    labels = {"outcome": "failed", "reason": "UPSTREAM_CUT", "status": "none"}
    assert value(meter, "calls_total", **labels) == 1
    assert value(meter, "call_first_byte_seconds_count") == 0


@given(st.text(max_size=30).filter(lambda text: text != "acme"))
def test_only_listed_workspaces_are_told_apart(workspace: str) -> None:
    """Whatever a workspace is called, it is `other` unless an operator listed it."""
    meter = PrometheusMeter(workspaces=["acme"])
    figures = CallFigures(workspace, 0.0, "completed", usage=Usage(7))
    meter.call(figures, 1.0)
    assert value(meter, "tokens_total", workspace="other", kind="input") == 7
    assert len(next(iter(meter._tokens.collect())).samples) == 4


def test_a_label_has_a_bounded_number_of_values() -> None:
    """Should words ever come from elsewhere, memory and the page stay bounded."""
    meter = PrometheusMeter()
    for number in range(metrics.MAX_VALUES * 3):
        meter.refused(f"REASON_{number}")
    meter.refused("x" * (metrics.MAX_LENGTH + 1))
    assert len(next(iter(meter._refusals.collect())).samples) == metrics.MAX_VALUES + 1
    assert value(meter, "refusals_total", reason="other") == metrics.MAX_VALUES * 2 + 1
    meter.refused("REASON_0")
    assert value(meter, "refusals_total", reason="REASON_0") == 2


def test_each_label_has_values_of_its_own() -> None:
    """One label that is full takes no word from another."""
    meter = PrometheusMeter()
    for number in range(metrics.MAX_VALUES * 2):
        meter.refused(f"REASON_{number}")
    meter.store("get", "STORE_UNAVAILABLE", 0.1)
    found = value(meter, "store_operations_total", operation="get", result="STORE_UNAVAILABLE")
    assert found == 1


def test_the_page_is_read_by_prometheus_own_parser() -> None:
    """Every metric ends up in the text, and nothing twice."""
    meter = PrometheusMeter()
    meter.rpc("/x.Y/Z", "OK", 0.1)
    meter.hsm("pkcs11:token=t", "hsm.unwrap", "ok", 0.001)
    meter.journal(3, "ok", 0.001)
    meter.journal(1, "AUDIT_UNAVAILABLE", 5.0)
    meter.reloaded("policy", success=True)
    meter.reloaded("tls", success=False)
    meter.connected(reused=True)
    meter.connected(reused=False)
    meter.validated(Verdict.VALID)
    meter.healthy("store", healthy=True)
    meter.healthy("hsm", healthy=False)
    meter.expires("server", 2e9)
    open_now = {"streams": 2}
    meter.watch("open", "What is under way.", "what", lambda: open_now)
    open_now["streams"] = 5
    text = generate_latest(meter.registry).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert value(meter, "open", what="streams") == 5
    assert value(meter, "journal_entries_total") == 3
    assert value(meter, "healthy", component="hsm") == 0
    assert "_created" not in text


def test_one_who_counts_nothing_takes_everything() -> None:
    """The parts need no meter: the silent one does nothing."""
    SILENT.rpc("m", "OK", 1.0)
    SILENT.call(CallFigures("acme", 0.0), 1.0)
    SILENT.expires("server", 1.0)


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "ok"),
        (KeyExists("id"), "ok"),
        (Unavailable("x", reason="STORE_BUSY"), "STORE_BUSY"),
        (RuntimeError(), "INTERRUPTED"),
        (asyncio.CancelledError(), "INTERRUPTED"),
    ],
)
def test_a_result_is_ok_or_says_why_not(error: BaseException | None, result: str) -> None:
    """An answer is no failure; an error of ours has its reason; the rest was interrupted."""
    told: list[tuple[str, float]] = []

    def work() -> None:
        with measured(lambda *found: told.append(found), KeyExists):
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert [found[0] for found in told] == [result]
    assert told[0][1] >= 0


class Failing:
    """A store, or a journal, each of whose methods raises this."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, _: str) -> object:
        async def fail(*_: object, **__: object) -> None:
            raise self._error

        return fail


async def test_the_stores_answers_and_failures_are_told_apart() -> None:
    """A full workspace is an answer; a busy store is a failure with its reason."""
    meter = PrometheusMeter()
    for error in (TooManyKeys(), Unavailable("x", reason="STORE_BUSY")):
        store = MeteredStore(Failing(error), meter)  # type: ignore[arg-type]
        with pytest.raises(type(error)):
            await store.get("acme", "id")
    assert value(meter, "store_operations_total", operation="get", result="ok") == 1
    assert value(meter, "store_operations_total", operation="get", result="STORE_BUSY") == 1


async def test_entries_that_were_refused_are_not_counted_as_written() -> None:
    """The journal's failures are appends without entries."""
    meter = PrometheusMeter()
    failing = Failing(Unavailable("x", reason="AUDIT_UNAVAILABLE"))
    with pytest.raises(Unavailable):
        await MeteredJournal(failing, meter).append()  # type: ignore[arg-type]
    assert value(meter, "journal_appends_total", result="AUDIT_UNAVAILABLE") == 1
    assert value(meter, "journal_entries_total") == 0
