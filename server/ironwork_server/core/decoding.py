"""HTTP content codings, decoded a piece at a time within bounds, for looking into bytes that pass.

gzip (RFC 1952) and deflate (RFC 1950, or bare RFC 1951 as some servers send it). The
bytes themselves are passed on as they came; what is decoded here is only looked at.
"""

import zlib
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024
CODINGS = frozenset({b"gzip", b"deflate"})

_GZIP = 16 + zlib.MAX_WBITS


class UndecodableError(Exception):
    """The bytes are not what their coding says, or they grow beyond the bound."""


class BoundedDecoder:
    """Decodes one body. Memory: one piece and zlib's window; work: at most max_bytes of output."""

    def __init__(self, content_encoding: bytes, *, max_bytes: int) -> None:
        """content_encoding: the header's value. Raises UndecodableError for a coding that is none
        of CODINGS, and for several in a row.
        """
        coding = content_encoding.strip().lower()
        if coding not in CODINGS:
            raise UndecodableError
        self._left = max_bytes
        # None for deflate until its first two bytes tell the variant.
        self._inflater = zlib.decompressobj(_GZIP) if coding == b"gzip" else None
        self._held = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Decoded pieces of at most 64 KiB. Consume them all. Raises UndecodableError, after which
        the decoder is of no use.
        """
        if self._inflater is None:
            self._held += chunk
            if len(self._held) < 2:
                return
            chunk, self._held = self._held, b""
            self._inflater = zlib.decompressobj(_deflate_window(chunk))
        yield from self._inflate(self._inflater, chunk)

    def _inflate(self, inflater: "zlib._Decompress", chunk: bytes) -> Iterator[bytes]:
        is_full = True
        while chunk or is_full:
            try:
                piece = inflater.decompress(chunk, PIECE_BYTES)
            except zlib.error:
                raise UndecodableError from None
            self._left -= len(piece)
            # Unused data may be a second gzip member: legal, sent by nobody, not worth the state.
            if self._left < 0 or inflater.unused_data:
                raise UndecodableError
            if piece:
                yield piece
            # A full piece may leave output behind in zlib with no input left to show for it.
            is_full = len(piece) == PIECE_BYTES
            chunk = inflater.unconsumed_tail


def _deflate_window(start: bytes) -> int:
    """RFC 1950's header is two bytes: method 8, and a multiple of 31; anything else is bare."""
    zlib_format = start[0] & 0x0F == 8 and int.from_bytes(start[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if zlib_format else -zlib.MAX_WBITS
