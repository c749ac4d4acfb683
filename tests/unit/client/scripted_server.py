"""A real gRPC server over mTLS whose WithKey plays a script: a generator that yields responses.

It is gRPC's threaded server, so that it shares no event loop with the client under test.
"""

import contextlib
import datetime as dt
import ipaddress
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from ironwork.keys.v1 import audit_pb2_grpc, keys_pb2, keys_pb2_grpc

Response = keys_pb2.WithKeyResponse
WAIT_S = 10.0


# --- certificates --------------------------------------------------------------------------------


class Authority:
    """A throw-away CA."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.pem = self._sign(self._name, self._key, [], ca=True)

    def issue(self, *names: x509.GeneralName) -> tuple[bytes, bytes]:
        """A certificate and its private key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return self._sign(subject, key, list(names), ca=False), secret

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName],
        *,
        ca: bool,
    ) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def server_identity(authority: Authority) -> tuple[bytes, bytes]:
    return authority.issue(
        x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    )


def agent_identity(authority: Authority) -> tuple[bytes, bytes]:
    return authority.issue(x509.UniformResourceIdentifier("spiffe://test/acme/agent"))


def write_profile(folder: Path, authority: Authority, target: str) -> Path:
    """A profile with its files, as the development server writes them."""
    certificate, key = agent_identity(authority)
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "agent.pem").write_bytes(certificate)
    (folder / "agent-key.pem").write_bytes(key)
    file = folder / "profile.toml"
    file.write_text(
        f'target = "{target}"\nserver_name = "localhost"\nca = "ca.pem"\n'
        'certificate = "agent.pem"\nprivate_key = "agent-key.pem"\nworkspace = "acme"\n'
    )
    return file


# --- messages ------------------------------------------------------------------------------------


def started() -> Response:
    return Response(started=keys_pb2.Started(max_body_bytes=16384))


def head(call: int, status: int = 200, *headers: tuple[str, bytes]) -> Response:
    message = Response(head=keys_pb2.ResponseHead(call=call, status=status))
    for name, value in headers:
        message.head.headers.add(name=name, value=value)
    return message


def body(call: int, data: bytes) -> Response:
    return Response(body=keys_pb2.ResponseBody(call=call, data=data))


def end(
    call: int,
    outcome: keys_pb2.Outcome.ValueType = keys_pb2.OUTCOME_COMPLETED,
    *,
    error: status_pb2.Status | None = None,
    sent: bool = True,
) -> Response:
    message = keys_pb2.ResponseEnd(call=call, outcome=outcome, error=error, sent_upstream=sent)
    if outcome == keys_pb2.OUTCOME_COMPLETED:
        message.anthropic_request_id = "req_1"
        message.key.name, message.key.mask = "workspaces/acme/keys/k1", "sk-ant-api…wxyz"
        message.usage.input_tokens, message.usage.output_tokens = 7, 11
        message.audit.origin, message.audit.index = "test.log", 5
    return Response(end=message)


def go_away(reason: keys_pb2.GoAway.Reason.ValueType = keys_pb2.GoAway.REASON_DRAIN) -> Response:
    return Response(go_away=keys_pb2.GoAway(reason=reason))


def status(
    code: grpc.StatusCode, reason: str = "", *, retry_s: int | None = None, message: str = "No."
) -> status_pb2.Status:
    """A google.rpc.Status as the service makes it."""
    result = status_pb2.Status(code=code.value[0], message=message)
    details = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="keys.ironwork.dev"))
    if retry_s is not None:
        details.append(
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=retry_s))
        )
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        result.details.append(packed)
    return result


# --- the server ----------------------------------------------------------------------------------


class ClientGone(Exception):
    """The client has closed or cancelled the stream."""


@dataclass
class Call:
    """A request that has arrived whole."""

    number: int
    head: keys_pb2.RequestHead
    body: bytes

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        return [(header.name, header.value) for header in self.head.headers]


class Stream:
    """One WithKey stream, as a script sees it."""

    def __init__(
        self,
        number: int,
        requests: Iterator[keys_pb2.WithKeyRequest],
        context: grpc.ServicerContext,
    ) -> None:
        self.number = number
        self.context = context
        self.gone = threading.Event()
        self.cancelled_calls: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._requests = requests
        context.add_callback(self.gone.set)

    def next(self) -> keys_pb2.WithKeyRequest:
        try:
            return next(self._requests)
        except (StopIteration, grpc.RpcError):
            raise ClientGone from None
        except Exception:  # noqa: BLE001 - gRPC's server raises a bare Exception on cancellation
            raise ClientGone from None

    def start(self) -> keys_pb2.Start:
        message = self.next()
        assert message.WhichOneof("message") == "start"
        return message.start

    def call(self) -> Call:
        """The next request, once it is complete."""
        while True:
            message = self.next()
            if message.HasField("cancel"):
                self.cancelled_calls.put(message.cancel.call)
                continue
            assert message.HasField("head"), message.WhichOneof("message")
            break
        self.begun.put(message.head.call)
        parts: list[bytes] = []
        while True:
            part = self.next()
            if part.HasField("end"):
                return Call(message.head.call, message.head, b"".join(parts))
            assert part.HasField("body"), part.WhichOneof("message")
            assert len(part.body.data) <= 16384
            parts.append(part.body.data)

    def abort(self, error: status_pb2.Status) -> None:
        """End the whole RPC with a status."""
        code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
        self.context.abort_with_status(
            _Status(code, error.message, (("grpc-status-details-bin", error.SerializeToString()),))
        )


@dataclass
class _Status(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


Script = Callable[[Stream], Iterator[Response]]
Reply = Callable[[Call], Iterator[Response]]


def serve(reply: Reply) -> Script:
    """The script of a server that answers each complete request with what reply yields."""

    def script(stream: Stream) -> Iterator[Response]:
        stream.start()
        yield started()
        while True:
            yield from reply(stream.call())

    return script


class ScriptedServer(keys_pb2_grpc.KeyServiceServicer, audit_pb2_grpc.AuditServiceServicer):
    """Plays `script` for each stream; `unary` answers the other RPCs by their names."""

    def __init__(self, authority: Authority) -> None:
        self.script: Script = serve(lambda call: iter((head(call.number), end(call.number))))
        self.unary: dict[str, Callable[[object, grpc.ServicerContext], object]] = {}
        self.streams: list[Stream] = []
        self.port = 0
        self._authority = authority
        self._identity = server_identity(authority)
        self._server: grpc.Server | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._arrived = threading.Condition()

    def start(self, port: int = 0) -> None:
        self._pool = ThreadPoolExecutor(max_workers=16)
        self._server = grpc.server(
            self._pool,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ],
        )
        keys_pb2_grpc.add_KeyServiceServicer_to_server(self, self._server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(self, self._server)
        certificate, key = self._identity
        self.port = self._server.add_secure_port(
            f"127.0.0.1:{port}",
            grpc.ssl_server_credentials(
                ((key, certificate),), self._authority.pem, require_client_auth=True
            ),
        )
        self._server.start()

    def stop(self) -> None:
        if self._server is not None and self._pool is not None:
            self._server.stop(None).wait(WAIT_S)
            self._pool.shutdown()
        self._server = None

    def wait_streams(self, count: int) -> list[Stream]:
        """Wait until that many streams have been opened altogether."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.streams) >= count, WAIT_S)
            return list(self.streams)

    def WithKey(  # noqa: N802 - gRPC's name
        self, request_iterator: Iterator[keys_pb2.WithKeyRequest], context: grpc.ServicerContext
    ) -> Iterator[Response]:
        with self._arrived:
            stream = Stream(len(self.streams), request_iterator, context)
            self.streams.append(stream)
            self._arrived.notify_all()
        with contextlib.suppress(ClientGone):
            yield from self.script(stream)

    def AddKey(self, request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
        return self.unary["AddKey"](request, context)

    def ListMasked(self, request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
        return self.unary["ListMasked"](request, context)

    def DeleteKey(self, request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
        return self.unary["DeleteKey"](request, context)

    def ListEntries(self, request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
        return self.unary["ListEntries"](request, context)


def abort(context: grpc.ServicerContext, error: status_pb2.Status) -> None:
    """End a unary RPC with a status, as the service does."""
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    context.abort_with_status(
        _Status(code, error.message, (("grpc-status-details-bin", error.SerializeToString()),))
    )
