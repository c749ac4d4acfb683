"""The gRPC server: its port, its options and their bounds."""

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from ironwork.keys.v1 import audit_pb2_grpc, keys_pb2_grpc
from ironwork_server.access.reload import Reloading
from ironwork_server.access.tls import ServerTls, server_credentials
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError
from ironwork_server.rpc.audit_service import AuditService
from ironwork_server.rpc.health import HealthMonitor
from ironwork_server.rpc.key_service import KeyService
from ironwork_server.rpc.receive import TableInterceptor

# What gRPC holds of a stream that is not being read; an upload sends as much in a round trip.
WINDOW_BYTES = 256 * 1024
# A peer that has gone silent is noticed within the sum.
KEEPALIVE_S = 20
KEEPALIVE_TIMEOUT_S = 10
MAX_CONNECTION_AGE_S = 3600
# For TLS to be agreed on. A connection that says nothing costs a file descriptor until then.
HANDSHAKE_S = 10


async def listen(
    settings: Settings,
    tls: Reloading[ServerTls],
    reading: TableInterceptor,
    keys: KeyService,
    audit: AuditService,
    health: HealthMonitor,
) -> tuple[grpc.aio.Server, int]:
    """Serve; gives the server and the port that was taken. Errors: StartupError."""
    server = grpc.aio.server(
        interceptors=[reading],
        options=[
            # Two servers on one port would share its calls silently.
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", settings.limits.streams_per_connection),
            ("grpc.max_receive_message_length", settings.limits.message_kib * 1024),
            # Bit 0, identity, alone: 10 KB of a compressed message would be unpacked into 10 MB.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.max_metadata_size", 16 * 1024),
            # A stream's window, fixed: gRPC would grow it to what the network carries, and then
            # holds megabytes for each stream that nobody reads (ADR 0016).
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
            # Connections keep the trust roots they were made with: rpc/grant.py ends their calls.
            ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_S * 1000),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
            ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
            # gRPC's own pings would hold the keepalive back for a minute.
            ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ],
    )
    keys_pb2_grpc.add_KeyServiceServicer_to_server(keys, server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(audit, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    try:
        port = server.add_secure_port(settings.listen, server_credentials(tls))
    except RuntimeError:
        raise StartupError(
            f"{settings.listen} cannot be listened on: the port is in use or not allowed."
            " Set `listen` to another address, or stop what uses it."
        ) from None
    await server.start()
    return server, port
