"""What counting costs: one Claude request's share of the server's CPU, and a scrape.

    .venv/bin/python bench/metrics.py [--calls 20000]

Tells the meter what one Claude request tells it (4 appends to the audit log, a read of the store,
an unwrap, a connection, the call itself), and makes the page after it. Quote the ratio: the time
beside that of one audit entry's rendering, which every request makes four times.
"""

import argparse
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from prometheus_client import generate_latest

from ironwork_audit import Event, render
from ironwork_server.app.metrics import PrometheusMeter
from ironwork_server.core.meter import SILENT, CallFigures, Meter
from ironwork_server.core.values import Usage

BACKEND = "pkcs11:token=ironwork;object=master"


def one_request(meter: Meter) -> None:
    """What the parts tell of one request."""
    for _ in range(4):
        meter.journal(1, "ok", 0.001)
    meter.store("current", "ok", 0.0001)
    meter.hsm(BACKEND, "hsm.unwrap", "ok", 0.0005)
    meter.connected(reused=True)
    figures = CallFigures("acme", 0.0, "completed", "", 200, 0.3, 400, 2000, Usage(10, 20))
    meter.call(figures, 0.5)


def one_entry() -> None:
    """One of the four entries that each request writes."""
    now = datetime.now(UTC)
    event = Event(
        phase="intent", operation="WithKey", correlation_id=str(uuid.uuid4()), time=now,
        principal="spiffe://example.org/workspace/acme/agent/coder", role="agent",
        workspace="acme", details={"policy_version": "0123456789ab"},
    )  # fmt: skip
    render(event, origin="example.org/keys/1", sequence=1, logged_time=now)


def micros(work: Callable[[], None], times: int) -> float:
    """Microseconds of CPU for each."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    calls = parser.parse_args().calls
    meter = PrometheusMeter(workspaces=["acme"])
    one_request(meter)
    counting, silent = (
        micros(lambda: one_request(meter), calls),
        micros(lambda: one_request(SILENT), calls),
    )
    entry = micros(one_entry, calls // 10)
    page = micros(lambda: generate_latest(meter.registry) and None, 50)
    print(f"a request's counting {counting:6.1f} µs, without a meter {silent:.1f} µs")
    print(f"one audit entry      {entry:6.1f} µs: counting is {counting / entry:.2f} of it")
    print(f"a scrape             {page:6.0f} µs, {len(generate_latest(meter.registry))} bytes")


if __name__ == "__main__":
    main()
