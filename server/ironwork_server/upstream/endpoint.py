"""Where requests go: a constant in production, never taken from the environment."""

import ipaddress
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9-]{1,63})*\Z")
_DEFAULT_PORTS = {True: 443, False: 80}


@dataclass(frozen=True, slots=True)
class UpstreamEndpoint:
    """One HTTPS origin.

    host: the lower-case DNS name or IP address that goes into `Host` and SNI and that the
    certificate is verified against. tls False is for development and for loopback hosts only.
    ca_file: PEM trust roots instead of the system's. connect_address: the IP address or name to
    connect to instead of host; what is verified stays host. Raises ValueError.
    """

    host: str
    port: int
    tls: bool = True
    ca_file: Path | None = None
    connect_address: str | None = None

    def __post_init__(self) -> None:
        for name in (self.host, self.address):
            if not is_host(name):
                raise ValueError("upstream host: give a lower-case DNS name or an IP address")
        if not 0 < self.port < 65536:
            raise ValueError("upstream port: give a number from 1 to 65535")
        if not self.tls and not (_is_loopback(self.host) and _is_loopback(self.address)):
            raise ValueError(
                "upstream: plain http is accepted for loopback hosts only; use https://"
            )
        if not self.tls and self.ca_file is not None:
            raise ValueError("upstream CA file: it has no meaning with http://; use https://")

    @classmethod
    def parse(
        cls, url: str, *, ca_file: Path | None = None, connect_address: str | None = None
    ) -> "UpstreamEndpoint":
        """From `https://host[:port]` or `http://loopback[:port]`, without path or credentials."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError("upstream URL: give https://HOST or https://HOST:PORT") from None
        extra = parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc
        if parts.scheme not in ("https", "http") or not host or extra:
            raise ValueError("upstream URL: give https://HOST or https://HOST:PORT, nothing more")
        tls = parts.scheme == "https"
        return cls(
            host,
            _DEFAULT_PORTS[tls] if port is None else port,
            tls=tls,
            ca_file=ca_file,
            connect_address=connect_address,
        )

    @property
    def address(self) -> str:
        """What is connected to."""
        return self.connect_address or self.host

    @property
    def authority(self) -> str:
        """The value of `Host` (RFC 9110 section 7.2): the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.tls] else f"{host}:{self.port}"

    @property
    def tunnel_target(self) -> str:
        """What a proxy is asked to connect to (RFC 9110 section 9.3.6): the port is never left out,
        and host is the proxy's to resolve, so that connect_address does not count.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The origin as a URL, without a path."""
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    def tls_context(self) -> ssl.SSLContext | None:
        """A context that verifies host; None without TLS. Raises ValueError where no trust roots
        can be loaded.
        """
        return verifying_context(self.ca_file, "upstream CA file") if self.tls else None


def verifying_context(ca_file: Path | None, setting: str) -> ssl.SSLContext:
    """A context that verifies certificate and host name against ca_file, or the system's roots.

    It is built from nothing rather than by ssl.create_default_context, which writes session
    keys to the file that SSLKEYLOGFILE names; nor does it look at SSL_CERT_FILE and
    SSL_CERT_DIR: to whom a key is sent is not the environment's to say. TLS 1.2 at least,
    ALPN `http/1.1`, no renegotiation. Raises ValueError, which names the setting, where no trust
    roots can be loaded.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A renegotiation could stop a write half-way, with the key still in a buffer.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is None:
        _load_system_roots(context)
    else:
        _load_roots(context, ca_file, setting)
    return context


def is_host(name: str) -> bool:
    """Whether this is a lower-case DNS name or an IP address."""
    return _is_address(name) or _DNS_NAME.match(name) is not None


def _load_roots(context: ssl.SSLContext, ca_file: Path, setting: str) -> None:
    try:
        context.load_verify_locations(cafile=str(ca_file))
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise ValueError(f"{setting} {ca_file}: it cannot be read as PEM certificates") from None


def _load_system_roots(context: ssl.SSLContext) -> None:
    """The places OpenSSL was built with, as far as they exist."""
    paths = ssl.get_default_verify_paths()
    cafile = paths.openssl_cafile if Path(paths.openssl_cafile).is_file() else None
    capath = paths.openssl_capath if Path(paths.openssl_capath).is_dir() else None
    if cafile is None and capath is None:
        raise ValueError(
            "upstream: this system has no trust roots (install ca-certificates, or set a CA file)"
        )
    context.load_verify_locations(cafile=cafile, capath=capath)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


ANTHROPIC = UpstreamEndpoint("api.anthropic.com", 443)
