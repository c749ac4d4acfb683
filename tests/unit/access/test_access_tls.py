"""The listener's credentials: checked when loaded, changed at the next handshake."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from fixtures.pki import ServerFiles, agent_id, channel_credentials, write_server_files
from ironwork_server.access import tls as tls_module
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.identity import IdentityMapper
from ironwork_server.access.reload import Reloading
from ironwork_server.access.rules import DEFAULT_RULES
from ironwork_server.access.tls import ServerTls, server_credentials
from ironwork_server.app.devpki import DEV_TRUST_DOMAIN, DevCa, Issued, write_private

DEADLINE_S = 30.0
LOCAL_POOL = (("grpc.use_local_subchannel_pool", 1),)


@pytest.fixture(name="files")
def make_files(tmp_path: Path, dev_ca: DevCa) -> ServerFiles:
    return write_server_files(tmp_path, dev_ca)


def load(files: ServerFiles, *, now: datetime | None = None) -> ServerTls:
    return ServerTls.load(files.certificate, files.private_key, files.client_ca, now=now)


def private_pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_good_files_load_and_show_no_private_key(files: ServerFiles) -> None:
    """What is loaded is what the files hold; its repr keeps the key to itself."""
    tls = load(files)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert tls.expires_at == certificate.not_valid_after_utc
    assert tls.private_key == files.private_key.read_bytes()
    assert "PRIVATE" not in repr(tls)


def rsa_key(bits: int) -> Callable[[], bytes]:
    return lambda: private_pem(rsa.generate_private_key(65537, bits))


def encrypted() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda: private_pem(ec.generate_private_key(ec.SECP256R1())), "does not belong"),
        (lambda: private_pem(ec.generate_private_key(ec.SECP384R1())), "does not belong"),
        (rsa_key(2048), "does not belong"),
        (rsa_key(1024), "cannot use"),
        (lambda: private_pem(ec.generate_private_key(ec.SECP521R1())), "cannot use"),
        (lambda: private_pem(ed25519.Ed25519PrivateKey.generate()), "cannot use"),
        (encrypted, "encrypted"),
        (lambda: b"canary", "not a private key"),
        (lambda: b"", "not a private key"),
        (lambda: b"x" * (tls_module.MAX_PEM_BYTES + 1), "longer"),
    ],
)
def test_a_private_key_that_cannot_serve_is_refused_by_name(
    files: ServerFiles, content: Callable[[], bytes], problem: str
) -> None:
    """The error names the file and how to mend it, and quotes nothing of it."""
    write_private(files.private_key, content())
    with pytest.raises(AccessConfigurationError, match=problem) as error:
        load(files)
    assert error.value.source == f"private key {files.private_key}"
    assert "canary" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_private_key_that_others_may_use_is_refused(files: ServerFiles, mode: int) -> None:
    """Only the owner has any right on the private key."""
    files.private_key.chmod(mode)
    with pytest.raises(AccessConfigurationError, match="chmod 600"):
        load(files)


@pytest.mark.parametrize(
    ("name", "what"), [("certificate", "server certificate"), ("client_ca", "client CA")]
)
@pytest.mark.parametrize("content", [b"canary", b"", None])
def test_a_certificate_file_that_does_not_parse_is_refused_by_name(
    files: ServerFiles, name: str, what: str, content: bytes | None
) -> None:
    """Neither rubbish nor an empty or missing file gets as far as gRPC."""
    path: Path = getattr(files, name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(AccessConfigurationError) as error:
        load(files)
    assert error.value.source == f"{what} {path}"
    assert "canary" not in str(error.value)


def test_what_is_not_valid_now_is_refused(
    tmp_path: Path, dev_ca: DevCa, files: ServerFiles
) -> None:
    """An expired or future certificate is a failure before it is served, for leaf and CA alike."""
    now = datetime.now(UTC)
    for shift, problem in ((timedelta(days=-1), "not valid yet"), (timedelta(days=40), "expired")):
        with pytest.raises(AccessConfigurationError, match=problem) as error:
            load(files, now=now + shift)
        assert error.value.source == f"server certificate {files.certificate}"
    stale = DevCa.create(lifetime=timedelta(seconds=-1))
    files.client_ca.write_bytes(dev_ca.certificate_pem + stale.certificate_pem)
    with pytest.raises(AccessConfigurationError, match="expired") as error:
        load(files)
    assert error.value.source == f"client CA {files.client_ca}"


@pytest.mark.parametrize("ca", [False, None])
def test_a_client_ca_that_is_no_ca_is_refused(
    files: ServerFiles, dev_ca: DevCa, ca: bool | None
) -> None:
    """A leaf among the client CAs is a mistake: it would vouch for itself alone."""
    files.client_ca.write_bytes(dev_ca.issue([], ca=ca).certificate_pem)
    with pytest.raises(AccessConfigurationError, match="no CA"):
        load(files)


@pytest.mark.parametrize(
    ("make", "good", "unknown"),
    [
        (ed25519.Ed25519PrivateKey.generate, False, False),
        (ed25519.Ed25519PrivateKey.generate, False, True),
        (lambda: rsa.generate_private_key(65537, 1024), False, False),
        (lambda: ec.generate_private_key(ec.SECP256K1()), False, False),
        (lambda: rsa.generate_private_key(65537, 2048), True, False),
        (lambda: ec.generate_private_key(ec.SECP521R1()), True, False),
    ],
    ids=["Ed25519", "unknown", "RSA-1024", "secp256k1", "RSA-2048", "P-521"],
)
def test_a_client_ca_that_could_vouch_for_nobody_is_refused(
    files: ServerFiles, make: Callable[[], Any], good: bool, unknown: bool
) -> None:
    """A CA whose clients would be refused at each call is refused when it is loaded."""
    key, now = make(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    if unknown:
        # Ed25519's object identifier, 1.3.101.112, made into one of nothing (RFC 8410, section 3).
        der = certificate.public_bytes(Encoding.DER)
        other = der.replace(bytes.fromhex("06032b6570"), bytes.fromhex("06032b657f"))
        certificate = x509.load_der_x509_certificate(other)
    files.client_ca.write_bytes(certificate.public_bytes(Encoding.PEM))
    if good:
        load(files)
        return
    with pytest.raises(AccessConfigurationError, match="cannot vouch") as error:
        load(files)
    assert error.value.source == f"client CA {files.client_ca}"


class Peers(grpc.GenericRpcHandler):
    """Answers every call with the caller's certificate."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        del handler_call_details

        async def answer(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
            (pem,) = context.auth_context()["x509_pem_cert"]
            return pem

        return grpc.unary_unary_rpc_method_handler(answer)


class Server:
    """A real server on a loopback port, whose files a test replaces."""

    def __init__(self, files: ServerFiles) -> None:
        self.failed = asyncio.Event()
        self.reloading = Reloading(
            lambda: load(files),
            [files.certificate, files.private_key, files.client_ca],
            name="tls",
            interval_s=0.01,
            on_failure=lambda _: self.failed.set(),
        )
        self.server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        self.server.add_generic_rpc_handlers((Peers(),))
        credentials = server_credentials(self.reloading)
        self.port = self.server.add_secure_port("127.0.0.1:0", credentials)

    async def changed(self, generation: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.reloading.wait_newer(generation)

    async def call(self, ca: DevCa, client: Issued | None) -> bytes:
        """One call on a connection of its own: the certificate that the server saw."""
        target = f"localhost:{self.port}"
        credentials = channel_credentials(ca, client)
        async with grpc.aio.secure_channel(target, credentials, options=LOCAL_POOL) as channel:
            answer: bytes = await channel.unary_unary("/test/Peer")(b"", timeout=DEADLINE_S)
            return answer

    async def refused(self, ca: DevCa, client: Issued | None) -> bool:
        try:
            await self.call(ca, client)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
        return False


@asynccontextmanager
async def serving(files: ServerFiles) -> AsyncIterator[Server]:
    server = Server(files)
    await server.server.start()
    try:
        async with server.reloading:
            yield server
    finally:
        await server.server.stop(None)


async def test_the_peers_certificate_becomes_its_principal(
    files: ServerFiles, dev_ca: DevCa
) -> None:
    """What gRPC hands over is what identify() takes; without a certificate there is no call."""
    client = dev_ca.client_certificate(agent_id())
    mapper = IdentityMapper(DEV_TRUST_DOMAIN, DEFAULT_RULES)
    async with serving(files) as server:
        assert mapper.identify(await server.call(dev_ca, client)).spiffe_id == agent_id()
        assert await server.refused(dev_ca, None)
        assert await server.refused(dev_ca, DevCa.create().client_certificate(agent_id()))


async def test_a_new_certificate_serves_the_next_handshake(
    files: ServerFiles, dev_ca: DevCa
) -> None:
    """Certificate and key are replaced one after the other, and no handshake fails for it."""
    other = DevCa.create()
    client = dev_ca.client_certificate(agent_id())
    async with serving(files) as server:
        await server.call(dev_ca, client)
        other.server_certificate().write(files.certificate, files.private_key)
        await server.changed(0)
        for _ in range(2):
            await server.call(other, client)
        assert await server.refused(dev_ca, client)


async def test_a_new_client_ca_serves_the_next_handshake(files: ServerFiles, dev_ca: DevCa) -> None:
    """Who was trusted is refused, who was refused is trusted, without a restart."""
    other = DevCa.create()
    old_client, new_client = (ca.client_certificate(agent_id()) for ca in (dev_ca, other))
    async with serving(files) as server:
        assert await server.refused(dev_ca, new_client)
        write_private(files.client_ca, other.certificate_pem)
        await server.changed(0)
        await server.call(dev_ca, new_client)
        assert await server.refused(dev_ca, old_client)


async def test_broken_files_are_told_and_the_old_ones_serve_on(
    files: ServerFiles, dev_ca: DevCa
) -> None:
    """A reload that fails is loud and harms nobody; the mended files are taken."""
    client = dev_ca.client_certificate(agent_id())
    async with serving(files) as server:
        write_private(files.certificate, b"broken")
        async with asyncio.timeout(DEADLINE_S):
            await server.failed.wait()
        assert isinstance(server.reloading.failed, AccessConfigurationError)
        await server.call(dev_ca, client)
        other = DevCa.create()
        other.server_certificate().write(files.certificate, files.private_key)
        await server.changed(0)
        assert server.reloading.failed is None
        await server.call(other, client)


async def test_each_port_is_told_of_each_change(files: ServerFiles, dev_ca: DevCa) -> None:
    """A port that takes the change does not hide it from another; unchanged is None."""
    reloading = Reloading(lambda: load(files), [files.certificate], name="tls", interval_s=3600.0)
    first, second = tls_module._Source(reloading), tls_module._Source(reloading)
    assert first() is None
    dev_ca.server_certificate().write(files.certificate, files.private_key)
    async with reloading:
        await reloading._poll()
    for source in (first, second):
        assert isinstance(source(), grpc.ServerCertificateConfiguration)
        assert source() is None
