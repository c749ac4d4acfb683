"""What a simulator is started with, and the rule that it listens on loopback only."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from ironwork_simulator.keys import KnownKey

MIB = 1024 * 1024
# Anthropic's bounds for the bodies of requests, by the route's name; of all others DEFAULT.
MAX_BODIES = {"batches.create": 256 * MIB, "files.upload": 500 * MIB}
DEFAULT_MAX_BODY = 32 * MIB


class NotLoopback(ValueError):
    """The simulator was asked to listen where others could reach it."""


@dataclass(frozen=True, slots=True)
class Config:
    """How a simulator behaves when nothing else is said.

    pace_s: seconds between the parts of an answer, 0 for benchmarks. tls_cert, tls_key: PEM files;
    without them it speaks plain HTTP. control_port: None for no control endpoint, 0 for any free
    port. log_file: JSON lines, without secrets. max_body: bytes, past which it answers
    413, instead of Anthropic's own bounds.
    idle_timeout_s: seconds after which a connection that carries nothing is closed.
    """

    host: str = "127.0.0.1"
    port: int = 0
    control_port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    keys: tuple[KnownKey, ...] = field(default=(), repr=False)
    pace_s: float = 0.0
    log_file: Path | None = None
    max_body: int | None = None
    max_connections: int = 4096
    idle_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: give both or neither")
        if self.pace_s < 0:
            raise ValueError("pace_s: must not be negative")
        require_loopback(self.host)


def require_loopback(host: str) -> None:
    """Raise NotLoopback unless host is a loopback IP address (names are not looked up)."""
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise NotLoopback(
        "host: the simulator listens on a loopback address only, such as 127.0.0.1 or ::1"
    )
