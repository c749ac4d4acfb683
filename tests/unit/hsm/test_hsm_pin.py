"""A PIN comes from a file of its own, which nobody else may read, and never leaves in an error."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_hsm import ConfigurationError
from ironwork_hsm.pin import MAX_PIN_BYTES, read_pin

SECRET = "hunter2-1234"


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_pin(path)
    message = str(caught.value)
    assert str(path) in message
    assert SECRET not in message
    assert caught.value.__cause__ is None
    return message


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"], ids=repr)
def test_the_line_end_is_no_part_of_the_pin(tmp_path: Path, end: bytes) -> None:
    """One trailing line end is stripped, in either form."""
    with read_pin(write(tmp_path / "pin", SECRET.encode() + end)) as pin:
        assert pin.reveal() == SECRET.encode()


@settings(deadline=None)  # a slow machine is no failure
@given(
    st.binary(min_size=1, max_size=MAX_PIN_BYTES).filter(lambda b: not set(b) & {*range(32), 127})
)
def test_any_bytes_but_control_characters(
    tmp_path_factory: pytest.TempPathFactory, pin: bytes
) -> None:
    """A PIN may hold blanks, UTF-8 and anything else that is no control character."""
    path = tmp_path_factory.getbasetemp() / "any-pin"
    with read_pin(write(path, pin + b"\n")) as read:
        assert read.reveal() == pin


def test_wiped_when_done(tmp_path: Path) -> None:
    """After the `with` block the buffer holds zeros."""
    with read_pin(write(tmp_path / "pin", SECRET.encode())) as pin:
        buffer = pin.reveal()
    assert buffer == bytes(len(SECRET))


def test_a_pin_shows_itself_nowhere(tmp_path: Path) -> None:
    """repr, str and format of a PIN give a constant."""
    with read_pin(write(tmp_path / "pin", SECRET.encode())) as pin:
        assert SECRET not in f"{pin} {pin!r} {pin!s}"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o666, 0o610])
def test_files_open_to_others_are_refused(tmp_path: Path, mode: int) -> None:
    """A PIN file that group or others may touch is refused, with the command that mends it."""
    path = write(tmp_path / "pin", SECRET.encode(), mode)
    assert f"chmod 600 {path}" in refused(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_private_files_are_read(tmp_path: Path, mode: int) -> None:
    """A file for the owner alone is read, writable or not."""
    with read_pin(write(tmp_path / "pin", SECRET.encode(), mode)) as pin:
        assert pin.reveal() == SECRET.encode()


def test_links_are_followed_to_the_file_that_counts(tmp_path: Path) -> None:
    """A secret mount's symbolic link is followed; the permissions are its target's."""
    target = write(tmp_path / "target", SECRET.encode())
    link = tmp_path / "pin"
    link.symlink_to(target)
    with read_pin(link) as pin:
        assert pin.reveal() == SECRET.encode()
    target.chmod(0o644)
    refused(link)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"], ids=repr)
def test_empty_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """A PIN is not empty."""
    assert "is empty" in refused(write(tmp_path / "pin", content))


def test_the_longest_pin(tmp_path: Path) -> None:
    """256 bytes are read; one more, and any size beyond, is refused."""
    with read_pin(write(tmp_path / "pin", b"1" * MAX_PIN_BYTES + b"\r\n")) as pin:
        assert len(pin.reveal()) == MAX_PIN_BYTES
    for size in (MAX_PIN_BYTES + 1, MAX_PIN_BYTES + 3, 10_000_000):
        assert "longer than 256" in refused(write(tmp_path / "pin", b"1" * size))


@pytest.mark.parametrize(
    "content", [b"one\ntwo\n", b"a\x00b", b"one\n\n", b"\x1b[A", b"a\tb"], ids=repr
)
def test_one_line_without_control_characters(tmp_path: Path, content: bytes) -> None:
    """A file of several lines is not a PIN file, and control characters are slips."""
    assert "nothing else" in refused(write(tmp_path / "pin", SECRET.encode() + content))


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is named."""
    assert "cannot be opened" in refused(tmp_path / "pin")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """Folders, devices and FIFOs are refused at once, without waiting for a writer."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (tmp_path, fifo, Path("/dev/null")):
        assert "not a regular file" in refused(path)


def test_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket is no PIN file either."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        refused(Path("socket"))
