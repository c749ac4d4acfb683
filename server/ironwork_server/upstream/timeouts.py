"""The bounds of the upstream client, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpstreamTimeouts:
    """Seconds. There is none on the whole of a live stream."""

    # TCP and TLS of a new connection; through a proxy, for the tunnel, and again for TLS in it.
    connect_s: float = 10.0
    # Reading and unwrapping the workspace's key.
    credential_s: float = 5.0
    # The upstream takes nothing of what is being written.
    write_stall_s: float = 60.0
    # From the end of the upload to the answer's head.
    first_byte_s: float = 600.0
    # Between two pieces of an answer's body.
    idle_s: float = 300.0
    # Between two pieces of the agent's body.
    body_idle_s: float = 300.0
    # For a free connection, when all are in use; and then for the turn to read the key.
    pool_wait_s: float = 10.0
    # An idle connection is kept no longer.
    keep_alive_s: float = 60.0
    # After an exchange, for its upload to stop.
    settle_s: float = 1.0


# At most this much of an answer's body in one piece; a TLS record holds no more (RFC 8446, 5.1).
CHUNK_BYTES = 16 * 1024
# What a connection holds of bytes that nobody has asked for yet; then the socket is not read.
RECEIVE_BYTES = 32 * 1024
# More than this unwritten, and the upload waits.
WRITE_HIGH_WATER = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
# Interim (1xx) answers to one request.
MAX_INFORMATIONAL = 16
# A proxy's answer to CONNECT.
MAX_PROXY_HEAD_BYTES = 16 * 1024
# Connections, or credentials that went stale, tried for one request before anything is written.
MAX_PREPARATIONS = 3
# Requests between the read of their key and their write: enough for the audit log's group commit
# and a KMS that takes 100 ms, few enough that reads stay young (ADR 0011).
MAX_PREPARING = 32
DEFAULT_MAX_CONNECTIONS = 256
