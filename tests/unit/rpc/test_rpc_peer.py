"""Who is at the other end."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.pki import agent_id
from ironwork_server.access.identity import IdentityMapper
from ironwork_server.access.rules import DEFAULT_RULES
from ironwork_server.access.trust import ClientTrust
from ironwork_server.app.devpki import DEV_TRUST_DOMAIN, DevCa
from ironwork_server.core.errors import Unauthenticated
from ironwork_server.rpc.peer import Peers, address


class Context:
    """A servicer's context with this peer and these certificates."""

    def __init__(self, peer: str | None = None, certificates: tuple[bytes, ...] = ()) -> None:
        self._peer = peer
        self._certificates = certificates

    def peer(self) -> str | None:
        return self._peer

    def auth_context(self) -> dict[str, tuple[bytes, ...]]:
        return {"x509_pem_cert": self._certificates} if self._certificates else {}


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:127.0.0.1:50000",
        "ipv6:[::1]:50000",
        "ipv6:%5B::1%5D:50000",
        "ipv6:%5Bfe80::1%25eth0%5D:1".replace("eth0", "0"),
        "unix:",
    ],
)
def test_an_address_is_taken_as_grpc_gives_it(peer: str) -> None:
    """IPv4, IPv6 in either writing, and a Unix socket without a name."""
    assert address(Context(peer)) == peer  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "peer",
    [
        None,
        "",
        "unix:/tmp/x",
        "ipv4:127.0.0.1",
        "ipv4:a:1",
        "ipv4:1.2.3.4:123456",
        "x" * 65,
        "ipv4:1.2.3.4:1\n",
        'ipv4:1.2.3.4:1"',
        "ipv6:" + "1:" * 40 + "1",
    ],
)
def test_what_is_no_address_is_left_out(peer: str | None) -> None:
    """A text of another form, or a long one, does not get into the log."""
    assert address(Context(peer)) == ""  # type: ignore[arg-type]


@given(st.text(max_size=80))
def test_no_text_gets_through_unless_it_is_an_address(peer: str) -> None:
    """Whatever a peer is called, only an address' characters pass."""
    taken = address(Context(peer))  # type: ignore[arg-type]
    assert taken in ("", peer)
    assert set(taken) <= set("ipvunx0123456789abcdefABCDEF:.%[]")


def peers(refused: list[str], ca: DevCa) -> Peers:
    mapper = IdentityMapper(DEV_TRUST_DOMAIN, DEFAULT_RULES)
    return Peers(mapper, ClientTrust(lambda: ca.certificate_pem), on_refused=refused.append)


def test_the_certificate_says_who_it_is(dev_ca: DevCa) -> None:
    """The principal comes from the certificate that TLS verified."""
    refused: list[str] = []
    issued = dev_ca.client_certificate(agent_id(), lifetime=timedelta(hours=1))
    context = Context(certificates=(issued.certificate_pem,))
    principal = peers(refused, dev_ca).principal(context)  # type: ignore[arg-type]
    assert (principal.spiffe_id, principal.workspace) == (agent_id(), "acme")
    assert not refused


def test_without_one_certificate_nobody_is_anybody(dev_ca: DevCa) -> None:
    """None, or two, is UNAUTHENTICATED, and is counted by its reason."""
    refused: list[str] = []
    pem = dev_ca.client_certificate(agent_id()).certificate_pem
    for certificates in ((), (pem, pem)):
        with pytest.raises(Unauthenticated):
            peers(refused, dev_ca).principal(Context(certificates=certificates))  # type: ignore[arg-type]
    assert refused == ["NO_CLIENT_CERTIFICATE"] * 2


def test_a_refused_certificate_is_counted_by_its_reason(dev_ca: DevCa) -> None:
    """A certificate that names nobody is told of once for each refusal."""
    refused: list[str] = []
    pem = dev_ca.issue([]).certificate_pem
    with pytest.raises(Unauthenticated) as error:
        peers(refused, dev_ca).principal(Context(certificates=(pem,)))  # type: ignore[arg-type]
    assert refused == [error.value.reason]


def test_a_certificate_of_a_ca_that_was_taken_out_is_counted(dev_ca: DevCa) -> None:
    """TLS accepted it under the CAs of its time; those in force now decide."""
    refused: list[str] = []
    context = Context(certificates=(dev_ca.client_certificate(agent_id()).certificate_pem,))
    others = peers(refused, DevCa.create())
    with pytest.raises(Unauthenticated):
        others.principal(context)  # type: ignore[arg-type]
    with pytest.raises(Unauthenticated):
        others.require_trusted(context)  # type: ignore[arg-type]
    assert refused == ["CERTIFICATE_UNTRUSTED"] * 2
    peers(refused, dev_ca).require_trusted(context)  # type: ignore[arg-type]
