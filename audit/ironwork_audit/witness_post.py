"""The way to a witness for a command: one POST at a time, bounded in time and size, never led on
elsewhere. (The server has its own, on its event loop.)
"""

import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from ironwork_audit.source import shut
from ironwork_audit.witness import ADD_CHECKPOINT, MAX_ANSWER_BYTES, checked_url
from ironwork_audit.witness_submission import Answer, WitnessFailed

DEADLINE_S: Final = 10.0


class WitnessPost:
    """Asks the witness at url. Redirects are not followed and no proxy is used. ValueError for a
    URL that is not to be used.
    """

    def __init__(self, url: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._parts = urlsplit(checked_url(url))
        self._deadline_s = deadline_s

    def add_checkpoint(self, body: bytes) -> Answer:
        """The answer. Raises WitnessFailed (WITNESS_UNREACHABLE, WITNESS_TIMEOUT,
        WITNESS_ANSWER_WRONG).
        """
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._deadline_s)
        ends = time.monotonic() + self._deadline_s
        # A socket's own timeout begins anew with each byte, and a witness may send one at a time.
        watch = threading.Timer(self._deadline_s, _end, [connection])
        watch.daemon = True
        watch.start()
        try:
            answer = self._post(connection, body)
        except (HTTPException, OSError):
            raise WitnessFailed(
                "WITNESS_TIMEOUT" if time.monotonic() >= ends else "WITNESS_UNREACHABLE"
            ) from None
        finally:
            watch.cancel()
            connection.close()
        if time.monotonic() >= ends:
            # What was cut may look like a whole answer.
            raise WitnessFailed("WITNESS_TIMEOUT")
        return answer

    def _post(self, connection: HTTPConnection, body: bytes) -> Answer:
        headers = {"Accept-Encoding": "identity", "Content-Type": "text/plain; charset=utf-8"}
        connection.request("POST", self._parts.path + ADD_CHECKPOINT, body, headers)
        with connection.getresponse() as response:
            data = response.read(MAX_ANSWER_BYTES + 1)
        if len(data) > MAX_ANSWER_BYTES:
            raise WitnessFailed("WITNESS_ANSWER_WRONG")
        return Answer(response.status, data)


def _end(connection: HTTPConnection) -> None:
    """End whatever waits for the connection; connecting has the same deadline by itself."""
    if connection.sock is not None:
        shut(connection.sock)
