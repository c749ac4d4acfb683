"""An answer that holds the key which asked for it is cut before the key's last byte is out.

core.echo finds what may be the key by its public marks; here it is judged: HMAC under the pepper,
which the HSM unwraps for it, on record, and which is wiped at once. Only then is it sure.
"""

import asyncio
import hashlib
import hmac
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Self

from ironwork_server.core.api_key import fingerprint
from ironwork_server.core.decoding import UndecodableError
from ironwork_server.core.echo import (
    Candidate,
    EchoFilter,
    EchoScanner,
    Look,
    echo_filter,
    look_away,
)
from ironwork_server.core.errors import IronworkError, UpstreamFailed
from ironwork_server.core.ports import UpstreamResponse
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import StoredKey
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.vault import Vault, damaged, key_length

log = logging.getLogger(__name__)

# As ports.UpstreamResponse.chunks has them: what was held back may make one longer.
MAX_CHUNK_BYTES = 16 * 1024
# Different candidates in one answer, each of which costs an HSM operation and two records (a Permit
# has 16). By accident there are none; a prompt can ask for any number.
MAX_CANDIDATES = 8

_LAST_FOUR = 4


class EchoJudge:
    """Whether a candidate is this call's key."""

    def __init__(self, vault: Vault, permit: Permit, row: StoredKey) -> None:
        self._vault = vault
        self._permit = permit
        self._row = row
        # SHA-256 of what was not the key.
        self._dismissed: set[bytes] = set()

    def scanner(self) -> EchoScanner:
        """A scanner for this key, from its record alone. Raises DataLoss."""
        try:
            last_four = self._row.mask[-_LAST_FOUR:].encode("ascii")
            return EchoScanner(length=key_length(self._row), last_four=last_four)
        except ValueError:
            raise damaged() from None

    async def refuse(self, candidate: memoryview) -> None:
        """Return if it is not the key. Raises UpstreamFailed: KEY_ECHOED if it is, ECHO_UNDECIDED
        if that cannot be found out.
        """
        digest = hashlib.sha256(candidate).digest()
        if digest in self._dismissed:
            return
        if len(self._dismissed) >= MAX_CANDIDATES:
            raise _undecided("TOO_MANY_CANDIDATES")
        try:
            is_key = await self._is_key(candidate)
        except IronworkError as error:
            # Its RetryInfo would be wrong here: the request was sent.
            raise _undecided(error.reason) from None
        if is_key:
            log.error("upstream.key_echoed")
            raise UpstreamFailed(
                "Anthropic's answer holds the key itself, and was cut before it. Nothing of the"
                " key was delivered.",
                reason="KEY_ECHOED",
            )
        self._dismissed.add(digest)

    async def _is_key(self, candidate: memoryview) -> bool:
        with await self._vault.pepper(self._permit) as pepper, Secret(candidate) as key:
            return hmac.compare_digest(fingerprint(key, pepper), self._row.fingerprint)


class GuardedResponse:
    """An UpstreamResponse that never holds the key. Make one with `open`."""

    def __init__(self, response: UpstreamResponse, judge: EchoJudge, filter_: EchoFilter) -> None:
        self._response = response
        self._judge = judge
        self._filter = filter_
        self._source = response.chunks()
        self._ready: deque[bytes] = deque()
        self._ended = False
        self._error: IronworkError | None = None

    @classmethod
    async def open(
        cls, response: UpstreamResponse, judge: EchoJudge, look: Look = look_away
    ) -> Self:
        """The headers are judged here. look: see core.echo.echo_filter. Raises
        UpstreamFailed: UPSTREAM_ENCODING for a body that
        cannot be looked into, and what EchoJudge.refuse raises.
        """
        await _check_headers(response.headers, judge)
        codings = [value for name, value in response.headers if name.lower() == b"content-encoding"]
        try:
            filter_ = echo_filter(b",".join(codings), judge.scanner(), look)
        except UndecodableError:
            raise _unreadable() from None
        return cls(response, judge, filter_)

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """See core.ports.UpstreamResponse. What came before an error comes before it here."""
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._advance()
        return self._ready.popleft()

    async def _advance(self) -> None:
        try:
            chunk = await anext(self._source, None)
        except IronworkError as error:
            self._error = error
            self._let_pass(b"".join(self._filter.abandon()))
            return
        if chunk is None:
            self._ended = True
            self._let_pass(b"".join(self._filter.finish()))
            return
        try:
            await self._inspect(chunk)
        except UndecodableError:
            self._error = _unreadable()
        except IronworkError as error:
            self._error = error

    async def _inspect(self, chunk: bytes) -> None:
        for found in self._filter.feed(chunk):
            if isinstance(found, Candidate):
                await self._judge.refuse(found.value)
            elif found:
                self._let_pass(found)
            else:
                await asyncio.sleep(0)

    def _let_pass(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_CHUNK_BYTES):
            self._ready.append(data[start : start + MAX_CHUNK_BYTES])


async def _check_headers(headers: Sequence[tuple[bytes, bytes]], judge: EchoJudge) -> None:
    # A line feed stands in no header and in no key: none is found across two.
    text = b"\n".join(part for header in headers for part in header)
    for found in echo_filter(b"", judge.scanner()).feed(text):
        if isinstance(found, Candidate):
            await judge.refuse(found.value)


def _undecided(cause: str) -> UpstreamFailed:
    return UpstreamFailed(
        "Anthropic's answer holds what may be the key, and it could not be told apart from it: it"
        " was cut there.",
        reason="ECHO_UNDECIDED",
        metadata={"cause": cause},
    )


def _unreadable() -> UpstreamFailed:
    return UpstreamFailed(
        "Anthropic's answer is in a content coding that this service cannot look into, or is not"
        " what its coding says.",
        reason="UPSTREAM_ENCODING",
    )
