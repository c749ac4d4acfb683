"""How much of a watched file its signature covers."""

from pathlib import Path

import pytest

from ironwork_server.access.reload import MAX_FILE_BYTES, signature_of

MIB = 1 << 20


@pytest.mark.parametrize("changed", [0, 16 * 1024, MIB + 5, 3 * MIB - 1])
def test_a_changed_byte_anywhere_in_a_long_file_changes_its_signature(
    tmp_path: Path, changed: int
) -> None:
    """Files are read in pieces, and every piece counts."""
    path = tmp_path / "ca.pem"
    content = bytearray(3 * MIB)
    path.write_bytes(content)
    before = signature_of([path])
    content[changed] = 1
    path.write_bytes(content)
    assert signature_of([path]) != before


def test_a_file_is_read_up_to_its_bound_and_no_further(tmp_path: Path) -> None:
    """An endless file does not hold up the watching of the others."""
    path = tmp_path / "ca.pem"
    path.write_bytes(bytes(MAX_FILE_BYTES))
    before = signature_of([path])
    path.write_bytes(bytes(MAX_FILE_BYTES) + b"more")
    assert signature_of([path]) == before
