"""Whether a chain leads to a client CA in force, whatever TLS found at the handshake."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fixtures.pki import agent_id
from ironwork_server.access.trust import MAX_PEM_BYTES, ClientTrust
from ironwork_server.app.devpki import DevCa

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Made:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def make(name: str, issuer: Made | None = None, *, ca: bool | None = True) -> Made:
    """Bare certificates, as small CAs make them: nothing but names, times and basicConstraints."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
    return Made(builder.sign(issuer.key if issuer else key, SHA256()), key)


def trust(*roots: Made, now: Callable[[], datetime] = lambda: NOW) -> ClientTrust:
    return ClientTrust(lambda: b"".join(root.pem for root in roots), now=now)


def test_a_chain_leads_to_its_root_and_to_no_other_of_the_same_name() -> None:
    """Signatures decide, not names; intermediates that the peer sent are used, in any order."""
    root, namesake = make("root"), make("root")
    middle = make("middle", root)
    inner = make("inner", middle)
    leaf = make("leaf", inner, ca=False)
    assert trust(root).trusts(leaf.pem, [inner.pem, middle.pem])
    assert trust(root).trusts(leaf.pem, [middle.pem + inner.pem])
    assert trust(namesake, root).trusts(leaf.pem, [inner.pem, middle.pem])
    assert not trust(namesake).trusts(leaf.pem, [inner.pem, middle.pem])
    assert not trust(root).trusts(leaf.pem, [inner.pem]), "a link is missing"


def test_an_intermediate_may_be_a_client_ca() -> None:
    """Whoever lists an intermediate trusts what it signed, as TLS does."""
    root = make("root")
    middle = make("middle", root)
    leaf = make("leaf", middle, ca=False)
    assert trust(middle).trusts(leaf.pem, [])
    assert not trust(make("other", root)).trusts(leaf.pem, [middle.pem])


@pytest.mark.parametrize("ca", [False, None])
def test_what_is_no_ca_signs_nobody(ca: bool | None) -> None:
    """A leaf's key makes no path, though its own certificate leads to a root."""
    root = make("root")
    no_ca = make("no CA", root, ca=ca)
    assert not trust(root).trusts(make("leaf", no_ca, ca=False).pem, [no_ca.pem])


def test_the_cas_in_force_are_asked_each_time() -> None:
    """A verdict is kept for the CAs that it was found with only."""
    root, other = make("root"), make("other")
    leaf, roots = make("leaf", root, ca=False), [root]
    changing = ClientTrust(lambda: roots[0].pem, now=lambda: NOW)
    assert changing.trusts(leaf.pem, [])
    roots[0] = other
    assert not changing.trusts(leaf.pem, [])
    roots[0] = root
    assert changing.trusts(leaf.pem, [])


def test_an_expired_ca_is_none() -> None:
    """A root or an intermediate outside its time leads nowhere."""
    root = make("root")
    leaf = make("leaf", make("middle", root), ca=False)
    assert not trust(root, now=lambda: NOW + timedelta(days=2)).trusts(leaf.pem, [])


def test_what_our_own_tool_makes_is_trusted(dev_ca: DevCa) -> None:
    """The certificates that `dev` makes lead to their CA."""
    leaf = dev_ca.client_certificate(agent_id()).certificate_pem
    assert ClientTrust(lambda: dev_ca.certificate_pem).trusts(leaf, [])


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_what_is_no_certificate_is_not_trusted(leaf: bytes, other: bytes) -> None:
    """Whatever the bytes are, the answer is no."""
    root = _ROOT
    good = _LEAF.pem
    assert not trust(root).trusts(leaf, [])
    assert not trust(root).trusts(
        good, [b"-----BEGIN CERTIFICATE-----\n" + other + b"\n-----END CERTIFICATE-----\n"]
    )


def test_a_chain_of_any_length_costs_a_bounded_search() -> None:
    """What is longer than a handshake carries is refused unread."""
    assert not trust(_ROOT).trusts(_LEAF.pem, [_ROOT.pem * (MAX_PEM_BYTES // len(_ROOT.pem) + 1)])


_ROOT = make("root")
_LEAF = make("leaf", _ROOT, ca=False)
