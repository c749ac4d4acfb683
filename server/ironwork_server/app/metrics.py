"""Prometheus metrics: every name, label and bucket, and nothing else.

Labels are enums, our own constants, or names on an allow list; a guard bounds each all the same.
docs/operations.md has the table, and tests/unit/docs holds it against this registry.
"""

import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import prometheus_client
from cryptography.x509 import load_pem_x509_certificates
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.process_collector import ProcessCollector

from ironwork_server.access.tls import ServerTls
from ironwork_server.core.meter import CallFigures, Meter
from ironwork_server.core.values import Verdict

OTHER = "other"
# Of one label; more than the code has words, and a bound all the same.
MAX_VALUES = 128
MAX_LENGTH = 128

# Seconds: what is local, and what waits for Anthropic (whose answers may take minutes).
LOCAL = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
REMOTE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

State = Mapping[str, int]


def tell_expiry(meter: Meter, tls: ServerTls) -> None:
    """Until when the server's certificate and the first of the client CAs are valid."""
    meter.expires("server", tls.expires_at.timestamp())
    authorities = load_pem_x509_certificates(tls.client_ca)
    first = min(authority.not_valid_after_utc for authority in authorities)
    meter.expires("client_ca", first.timestamp())


class _Words:
    """Label values, of which only so many are told apart, for each label by itself."""

    def __init__(self) -> None:
        self._known: defaultdict[str, set[str]] = defaultdict(set)

    def __call__(self, label: str, value: str) -> str:
        known = self._known[label]
        if value in known:
            return value
        if len(known) >= MAX_VALUES or len(value) > MAX_LENGTH:
            return OTHER
        known.add(value)
        return value


class PrometheusMeter(Meter):
    """A registry of its own. workspaces: those whose tokens are told apart; all else is `other`."""

    def __init__(self, *, workspaces: Sequence[str] = ()) -> None:
        # Gauges that say when each counter was made would double the answer.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # its stubs
        self.registry = CollectorRegistry()
        self._workspaces = frozenset(workspaces)
        self._words = _Words()
        self._own()
        self._of_calls()
        self._of_dependencies()

    def _own(self) -> None:
        ProcessCollector(registry=self.registry)
        build = Info("ironwork_build", "The server's version.", registry=self.registry)
        build.info(
            {
                "version": version("ironwork-server"),
                "python": platform.python_version(),
                "grpc": version("grpcio"),
            }
        )
        self._rpcs = self._counter("rpcs", "RPCs by gRPC code.", "method", "code")
        self._rpc_seconds = self._histogram(
            "rpc_duration_seconds", "Until an RPC's end.", REMOTE, "method"
        )
        self._refusals = self._counter(
            "refusals", "Callers refused: identity, policy, limits.", "reason"
        )
        self._reloads = self._counter("reloads", "Changed files.", "component", "result")
        self._health = self._gauge("healthy", "1 while a dependency works.", "component")
        self._witness = self._counter(
            "witness_submissions", "Checkpoints shown to witnesses.", "witness", "result"
        )
        self._witnessed = self._gauge(
            "witnessed_entries", "Entries of the tree that a witness signed last.", "witness"
        )
        self._witnessed_at = self._gauge(
            "witnessed_timestamp_seconds", "When a witness signed last.", "witness"
        )
        self._expiry = self._gauge(
            "certificate_expiry_timestamp_seconds", "A certificate's end.", "certificate"
        )

    def _of_calls(self) -> None:
        self._calls = self._counter(
            "calls",
            "Claude requests; reason is empty and status 2xx where all went well.",
            "outcome",
            "reason",
            "status",
        )
        self._call_seconds = self._histogram(
            "call_duration_seconds", "From a request's head to its end.", REMOTE, "outcome"
        )
        self._first_byte = self._histogram(
            "call_first_byte_seconds", "From a request's head to that of its answer.", REMOTE
        )
        self._bytes = self._counter("call_body_bytes", "Of bodies that passed.", "direction")
        self._tokens = self._counter(
            "tokens", "Tokens as Anthropic reported them.", "workspace", "kind"
        )
        self._validations = self._counter(
            "key_validations", "Anthropic's verdicts on added keys.", "verdict"
        )
        self._connections = self._counter(
            "upstream_requests", "Requests by the connection that they took.", "connection"
        )

    def _of_dependencies(self) -> None:
        self._hsm = self._counter(
            "hsm_operations", "HSM operations.", "backend", "operation", "result"
        )
        self._hsm_seconds = self._histogram(
            "hsm_operation_duration_seconds", "In the HSM.", LOCAL, "backend", "operation"
        )
        self._store = self._counter("store_operations", "Store operations.", "operation", "result")
        self._store_seconds = self._histogram(
            "store_operation_duration_seconds", "In the store.", LOCAL, "operation"
        )
        self._appends = self._counter("journal_appends", "Appends to the audit log.", "result")
        self._entries = self._counter("journal_entries", "Entries that were made durable.")
        self._append_seconds = self._histogram(
            "journal_append_duration_seconds", "Until an append is durable.", LOCAL
        )

    def watch(self, name: str, text: str, label: str, state: Callable[[], State]) -> None:
        """A gauge that is asked at each scrape: state gives a number for each value of the label.
        The values are the keys of what it gives now.
        """
        gauge = self._gauge(name, text, label)
        for value in state():
            gauge.labels(value).set_function(_asking(state, value))

    # --- core.meter.Meter ---

    def rpc(self, method: str, code: str, seconds: float) -> None:
        self._rpcs.labels(method, code).inc()
        self._rpc_seconds.labels(method).observe(seconds)

    def call(self, figures: CallFigures, seconds: float) -> None:
        status = f"{figures.status // 100}xx" if 100 <= figures.status <= 599 else "none"
        reason = self._words("reason", figures.reason)
        self._calls.labels(figures.outcome, reason, status).inc()
        self._call_seconds.labels(figures.outcome).observe(seconds)
        if figures.first_byte_s is not None:
            self._first_byte.observe(figures.first_byte_s)
        self._bytes.labels("up").inc(figures.received_bytes)
        self._bytes.labels("down").inc(figures.sent_bytes)
        if figures.usage is not None:
            self._count_tokens(figures)

    def _count_tokens(self, figures: CallFigures) -> None:
        usage = figures.usage
        workspace = figures.workspace if figures.workspace in self._workspaces else OTHER
        for kind, count in (
            ("input", usage.input_tokens if usage else 0),
            ("output", usage.output_tokens if usage else 0),
            ("cache_creation", usage.cache_creation_input_tokens if usage else 0),
            ("cache_read", usage.cache_read_input_tokens if usage else 0),
        ):
            self._tokens.labels(workspace, kind).inc(count)

    def hsm(self, backend: str, operation: str, result: str, seconds: float) -> None:
        backend = self._words("backend", backend)
        self._hsm.labels(backend, operation, self._words("result", result)).inc()
        self._hsm_seconds.labels(backend, operation).observe(seconds)

    def store(self, operation: str, result: str, seconds: float) -> None:
        self._store.labels(operation, self._words("result", result)).inc()
        self._store_seconds.labels(operation).observe(seconds)

    def journal(self, entries: int, result: str, seconds: float) -> None:
        self._appends.labels(self._words("result", result)).inc()
        if result == "ok":
            self._entries.inc(entries)
        self._append_seconds.observe(seconds)

    def reloaded(self, component: str, *, success: bool) -> None:
        self._reloads.labels(component, "ok" if success else "failed").inc()

    def connected(self, *, reused: bool) -> None:
        self._connections.labels("reused" if reused else "opened").inc()

    def validated(self, verdict: Verdict) -> None:
        self._validations.labels(verdict.value).inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(self._words("reason", reason)).inc()

    def healthy(self, component: str, *, healthy: bool) -> None:
        self._health.labels(component).set(1 if healthy else 0)

    def witness(self, name: str, result: str) -> None:
        self._witness.labels(self._words("witness", name), self._words("result", result)).inc()

    def witnessed(self, name: str, size: int, timestamp: float) -> None:
        self._witnessed.labels(self._words("witness", name)).set(size)
        self._witnessed_at.labels(self._words("witness", name)).set(timestamp)

    def expires(self, certificate: str, timestamp: float) -> None:
        self._expiry.labels(certificate).set(timestamp)

    # --- parts ---

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ironwork_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"ironwork_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"ironwork_{name}", text, labels, buckets=buckets, registry=self.registry)


def _asking(state: Callable[[], State], value: str) -> Callable[[], float]:
    return lambda: state()[value]
