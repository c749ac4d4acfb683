"""The upstream of bench/upstream.py: one process, HTTP/1.1 over TLS, answers made beforehand.

    python bench/upstream_peer.py CERTIFICATE KEY

Prints its port. POST /unary gets 500 bytes of JSON; POST /sse gets 100 events in chunked framing,
written 10 at a time with a turn of the loop in between, as an API does that thinks meanwhile.
"""

import asyncio
import json
import ssl
import sys

EVENTS = 100
EVENTS_A_WRITE = 10
HEADERS = (
    b"request-id: req_011CSHoEeqs5C35K2UUqR7Fy\r\nanthropic-organization-id: org\r\nDate: x\r\n"
)
_BODY = json.dumps({"type": "message", "usage": {"input_tokens": 1}, "content": "x" * 432}).encode()
UNARY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    + HEADERS
    + b"Content-Length: %d\r\n\r\n" % len(_BODY)
    + _BODY
)
EVENT = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
    b'{"type":"text_delta","text":"ten letters"}}\n\n'
)
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    + HEADERS
    + b"Transfer-Encoding: chunked\r\n\r\n"
)
PART = (b"%x\r\n" % len(EVENT) + EVENT + b"\r\n") * EVENTS_A_WRITE


class Peer(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is needed")
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        self._received = b""
        if head.startswith(b"POST /unary"):
            self._transport.write(UNARY)
        else:
            self._transport.write(SSE_HEAD)
            self._send(EVENTS // EVENTS_A_WRITE)

    def _send(self, parts: int) -> None:
        self._transport.write(PART if parts else b"0\r\n\r\n")
        if parts:
            asyncio.get_running_loop().call_soon(self._send, parts - 1)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


async def main(certificate: str, key: str) -> None:
    """Serve until killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Peer, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
