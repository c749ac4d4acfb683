"""Bodies for bulk: bytes that look random, and any bytes compressed."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator

_BLOCK = 64 * 1024
# windowBits of zlib: a gzip member, a zlib stream (what HTTP calls deflate, RFC 9110, 8.4.1.2).
_WINDOW = {"gzip": 31, "deflate": 15}


def filling(length: int) -> Iterator[bytes]:
    """length bytes in blocks: no two blocks are alike, so that what is lost or swapped is seen."""
    pattern = hashlib.shake_256(b"filling").digest(_BLOCK)
    for start in range(0, length, _BLOCK):
        block = start.to_bytes(8, "big") + pattern[8:]
        yield block[: length - start]


def filling_sha256(length: int) -> str:
    """Of the whole filling."""
    digest = hashlib.sha256()
    for block in filling(length):
        digest.update(block)
    return digest.hexdigest()


def compressed_parts(parts: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Each part compressed so that it can be read when it has arrived."""
    compressor = zlib.compressobj(wbits=_WINDOW[encoding])
    for part in parts:
        yield compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()
