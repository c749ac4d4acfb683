"""The operator's CONNECT proxy, where one is set: never taken from the environment."""

import base64
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ironwork_server.core.secret import Secret
from ironwork_server.upstream.endpoint import is_host, verifying_context

MAX_CREDENTIALS_BYTES = 1024
_HELP = "upstream.proxy: give http://HOST:PORT or https://HOST:PORT, nothing more"


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """host and port of the proxy. tls: TLS with the proxy itself, around the TLS with Anthropic.

    ca_file: PEM trust roots for the proxy's certificate instead of the system's.
    credentials_file: one line, `user:password` (RFC 7617), its owner's alone.
    """

    host: str
    port: int
    tls: bool = False
    ca_file: Path | None = None
    credentials_file: Path | None = None

    @classmethod
    def parse(
        cls, url: str, *, ca_file: Path | None = None, credentials_file: Path | None = None
    ) -> "UpstreamProxy":
        """From `http://host:port` or `https://host:port`. Raises ValueError, without the URL."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError(_HELP) from None
        if "@" in parts.netloc:
            raise ValueError(
                "upstream.proxy: it holds a user name or a password; put user:password into a file"
                " of its own and name that in upstream.proxy_credentials"
            )
        extra = parts.path not in ("", "/") or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not host or not port or extra:
            raise ValueError(_HELP)
        if not is_host(host):
            raise ValueError("upstream.proxy: give a lower-case DNS name or an IP address")
        tls = parts.scheme == "https"
        if ca_file is not None and not tls:
            raise ValueError(
                "upstream.proxy_ca: it has no meaning with an http:// proxy; leave it out"
            )
        return cls(host, port, tls, ca_file, credentials_file)

    def tls_context(self) -> ssl.SSLContext | None:
        """For TLS with the proxy; None where there is none. Raises ValueError."""
        return verifying_context(self.ca_file, "upstream.proxy_ca") if self.tls else None

    def authorization(self) -> Secret | None:
        """The value of `Proxy-Authorization`; None where there are no credentials. Raises
        ValueError, which never holds what the file holds.
        """
        path = self.credentials_file
        if path is None:
            return None
        with Secret(_read(path)) as line:
            _check(path, line)
            with line.reveal() as plain:
                return Secret(b"Basic " + base64.b64encode(plain))


def _read(path: Path) -> bytes:
    """The one line. O_NONBLOCK: opening a FIFO must not hang before it can be refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise _refused(path, "is not a regular file")
            if stat.S_IMODE(mode) & 0o077:
                raise _refused(path, f"is open to group or others; mend it with: chmod 600 {path}")
            data = os.read(descriptor, MAX_CREDENTIALS_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused(path, f"cannot be read ({os.strerror(error.errno or 0)})") from None
    if len(data) > MAX_CREDENTIALS_BYTES:
        raise _refused(path, f"is longer than {MAX_CREDENTIALS_BYTES} bytes")
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _check(path: Path, line: Secret) -> None:
    """RFC 7617 section 2: a colon, which the user name does not hold, and no control characters."""
    with line.reveal() as plain:
        if not bytes(plain).partition(b":")[0] or b":" not in bytes(plain):
            raise _refused(path, "does not hold user:password")
        if any(byte < 0x20 or byte == 0x7F for byte in plain):
            raise _refused(path, "must hold one line, without control characters")


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(f"upstream.proxy_credentials: {path} {what}")
