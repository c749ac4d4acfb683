"""A server that is cut off without a word: nothing arrives, and no connection is closed."""

import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest

from ironwork.keys.v1 import keys_pb2
from ironwork_client import Profile, WithKeyTransport
from unit.client import scripted_server as scripted
from unit.client.scripted_server import started

pytestmark = pytest.mark.usefixtures("no_thread_left")


class Wire:
    """A TCP forwarder to the server that can swallow everything from one moment on."""

    def __init__(self, port: int) -> None:
        self.cut = threading.Event()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        while True:
            ready, _, _ = select.select([self._listener, self._stopped, *peers], [], [])
            if self._stopped in ready:
                break
            for source in ready:
                if source is self._listener:
                    near, _ = self._listener.accept()
                    far = socket.create_connection(("127.0.0.1", self._to))
                    peers |= {near: far, far: near}
                elif source in peers:
                    self._forward(source, peers)
        for peer in peers:
            peer.close()

    def _forward(self, source: socket.socket, peers: dict[socket.socket, socket.socket]) -> None:
        try:
            data = source.recv(65536)
            if data and not self.cut.is_set():
                peers[source].sendall(data)
        except OSError:
            data = b""
        if not data:
            other = peers.pop(source)
            peers.pop(other)
            source.close()
            other.close()

    def close(self) -> None:
        self._stop.close()
        self._thread.join(scripted.WAIT_S)
        self._listener.close()
        self._stopped.close()


@pytest.fixture
def wire(scripted_server: scripted.ScriptedServer) -> Iterator[Wire]:
    made = Wire(scripted_server.port)
    yield made
    made.close()


def test_a_silent_partition_is_noticed_by_keepalive(
    profile: Profile,
    scripted_server: scripted.ScriptedServer,
    wire: Wire,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that is cut off is given up within the two keepalive times (30 s as shipped,
    shorter here), long before a read timeout.
    """
    monkeypatch.setattr("ironwork_client._channel.KEEPALIVE_S", 1)
    monkeypatch.setattr("ironwork_client._channel.KEEPALIVE_TIMEOUT_S", 1)

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        stream.call()
        wire.cut.set()
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    transport = WithKeyTransport(replace(profile, target=f"127.0.0.1:{wire.port}"))
    with (
        httpx2.Client(transport=transport, timeout=httpx2.Timeout(None, read=20)) as client,
        pytest.raises(httpx2.ReadError),
    ):
        client.post("https://api.anthropic.com/v1/messages", content=b"q")
