"""Asks a proxy for a tunnel (CONNECT, RFC 9110 section 9.3.6), and takes nothing else from it."""

import h11

from ironwork_server.core.secret import Secret, wipe
from ironwork_server.upstream import faults
from ironwork_server.upstream.channel import Channel
from ironwork_server.upstream.timeouts import MAX_INFORMATIONAL, MAX_PROXY_HEAD_BYTES

_END_OF_HEAD = b"\r\n\r\n"


async def open_tunnel(channel: Channel, target: str, authorization: Secret | None) -> None:
    """Have the proxy at the other end of channel connect it to target (`host:port`).

    Whatever follows the head of its 2xx is refused: the upstream never speaks first in TLS, so
    it could only be the proxy's. Raises Unavailable, faults.FOREIGN. The deadline is the caller's.
    """
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_PROXY_HEAD_BYTES)
    request = h11.Request(method="CONNECT", target=target, headers=[("Host", target)])
    _write(channel, http.send(request), authorization)
    http.send(h11.EndOfMessage())
    response = await _answer(http, channel)
    if not 200 <= response.status_code < 300:
        raise faults.proxy_refused(response.status_code)
    if http.trailing_data != (b"", False) or not channel.is_quiet():
        raise faults.proxy_malformed()


def _write(channel: Channel, head: bytes, authorization: Secret | None) -> None:
    """The credentials go in at the end, so that h11 does not hold them."""
    buffer = bytearray(head)
    if authorization is not None:
        with authorization.reveal() as value:
            buffer[-2:] = b"Proxy-Authorization: " + value + _END_OF_HEAD
    try:
        channel.write(buffer)
    finally:
        wipe(buffer)


async def _answer(http: h11.Connection, channel: Channel) -> h11.Response:
    informational = 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await channel.read())
        elif isinstance(event, h11.Response):
            return event
        elif isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            informational += 1
            if informational > MAX_INFORMATIONAL:
                raise faults.proxy_malformed()
        else:
            raise faults.proxy_malformed()
