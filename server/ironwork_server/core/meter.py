"""What the service tells of itself in numbers. The parts know this and nothing of Prometheus.

Names and reasons that are passed here come from this code's own constants and enums, workspaces
from the configured mapping; never anything that a caller or Anthropic wrote.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from ironwork_server.core.errors import IronworkError
from ironwork_server.core.values import Usage, Verdict


@dataclass(slots=True)
class CallFigures:
    """One Claude request. outcome: the contract's word in small letters. reason: why it did not
    complete. status: Anthropic's, 0 where nothing came. Bytes are of the bodies.
    """

    workspace: str
    began: float
    outcome: str = ""
    reason: str = ""
    status: int = 0
    first_byte_s: float | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    usage: Usage | None = None


class Meter:
    """Counts nothing; whoever counts overrides what it wants. No method raises or waits."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """An RPC ended with this gRPC code's name. method: a row of the table, or `other`."""

    def call(self, figures: CallFigures, seconds: float) -> None:
        """A Claude request ended, however it did."""

    def hsm(self, backend: str, operation: str, result: str, seconds: float) -> None:
        """An HSM operation ended. result: `ok` or the reason of its failure."""

    def store(self, operation: str, result: str, seconds: float) -> None:
        """A store operation ended. operation: a method of KeyStore."""

    def journal(self, entries: int, result: str, seconds: float) -> None:
        """So many entries are durable, or (result is not `ok`) were refused."""

    def reloaded(self, component: str, *, success: bool) -> None:
        """Files changed, and are in force or cannot be used."""

    def connected(self, *, reused: bool) -> None:
        """A connection to Anthropic was taken for a request."""

    def validated(self, verdict: Verdict) -> None:
        """Anthropic was asked about a key."""

    def refused(self, reason: str) -> None:
        """A caller was refused: identity, policy or a limit."""

    def healthy(self, component: str, *, healthy: bool) -> None:
        """What health found of one dependency."""

    def witness(self, name: str, result: str) -> None:
        """A witness was shown a checkpoint. name: its key's, of the settings. result: `ok` or the
        reason of its failure.
        """

    def witnessed(self, name: str, size: int, timestamp: float) -> None:
        """A witness has signed the tree of so many entries, at a time of its own clock."""

    def expires(self, certificate: str, timestamp: float) -> None:
        """Until when one of our certificates is valid, in seconds since 1970."""


SILENT = Meter()


@contextmanager
def measured(tell: Callable[[str, float], None], *answers: type[Exception]) -> Iterator[None]:
    """Tell the result and the seconds of the block: `ok`, an IronworkError's reason, INTERRUPTED
    (cancelled, or not ours). answers: exceptions that are no failure.
    """
    result, began = "INTERRUPTED", perf_counter()
    try:
        yield
        result = "ok"
    except answers:
        result = "ok"
        raise
    except IronworkError as error:
        result = error.reason
        raise
    finally:
        tell(result, perf_counter() - began)
