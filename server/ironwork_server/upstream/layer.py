"""One TLS session over bytes that somebody else carries."""

import ssl

from ironwork_server.upstream.timeouts import CHUNK_BYTES


class TlsLayer:
    """The client's side. Ciphertext goes into `incoming` and comes out of `outgoing`."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        """For whoever proves to be host."""
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)

    def write(self, data: bytes | bytearray) -> None:
        """Encrypt all of data now: nothing else holds the plaintext afterwards."""
        with memoryview(data) as view:
            offset = 0
            while offset < len(view):  # one TLS record at a time
                with view[offset : offset + CHUNK_BYTES] as record:
                    offset += self.tls.write(record)

    def lift(self, above: "TlsLayer") -> bool:
        """Decrypt what came for the layer above, as much as there is; False once the peer has
        announced its end.
        """
        while True:
            try:
                data = self.tls.read(CHUNK_BYTES)
            except ssl.SSLWantReadError:
                return True
            if not data:
                return False
            above.incoming.write(data)
