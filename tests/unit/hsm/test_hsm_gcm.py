"""Blobs: their layout, what binds them, and whose fault a failed decryption is."""

import os
from typing import Any

import pkcs11.exceptions as p11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_hsm import (
    BlobRejected,
    ConfigurationError,
    HsmError,
    KeyMissing,
    PinRefused,
    Unavailable,
)
from ironwork_hsm.pkcs11 import gcm
from ironwork_hsm.pkcs11.blob import BLOB_BYTES, associated_data, pack, unpack
from ironwork_hsm.pkcs11.errors import login_failure, translate

FIELDS = st.tuples(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.integers(1, 2**32 - 1),
    st.text(st.characters(codec="ascii"), max_size=8),
    st.binary(max_size=8),
)


def bound(fields: tuple[str, int, str, bytes]) -> bytes:
    name, version, mechanism, context = fields
    return associated_data(name=name, version=version, mechanism=mechanism, context=context)


@settings(deadline=None)  # a slow machine is no failure
@given(FIELDS, FIELDS)
def test_associated_data_is_unambiguous(
    first: tuple[str, int, str, bytes], second: tuple[str, int, str, bytes]
) -> None:
    """Two blobs are bound to the same bytes only where all four fields are the same."""
    assert (bound(first) == bound(second)) == (first == second)


def test_associated_data_is_what_is_documented() -> None:
    """The format is fixed: blobs of today must open tomorrow."""
    assert associated_data(name="n", version=2, mechanism="m", context=b"cc") == (
        b"\0\0\0\x10ironwork-wrap-v1" b"\0\0\0\x01n" b"\0\0\0\x04\0\0\0\x02"
        b"\0\0\0\x01m" b"\0\0\0\x02cc"
    )  # fmt: skip


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(min_size=12, max_size=12), st.binary(min_size=48, max_size=48))
def test_blobs_pack_and_unpack(iv: bytes, sealed: bytes) -> None:
    """A blob is its layout byte, the IV, and ciphertext with tag."""
    blob = pack(iv, sealed)
    assert blob == b"\x01" + iv + sealed
    assert len(blob) == BLOB_BYTES == 61
    assert unpack(blob) == (iv, sealed)


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(max_size=128))
def test_other_bytes_are_no_blob(blob: bytes) -> None:
    """Any other length or layout byte is rejected."""
    if len(blob) == BLOB_BYTES and blob[0] == 1:
        blob = b"\x02" + blob[1:]
    with pytest.raises(BlobRejected):
        unpack(blob)


class Device:
    """A key handle whose encryption and decryption fail as told."""

    def __init__(
        self, *, bad_tag: type[Exception], sick: type[Exception] | None = None, clear: bool = False
    ) -> None:
        self._bad_tag = bad_tag
        self._sick = sick
        self._clear = clear
        self._known: dict[bytes, bytes] = {}

    def _encrypt(self, data: bytes, **_: Any) -> bytes:
        if self._sick:
            raise self._sick
        sealed = bytes(data) + bytes(16) if self._clear else os.urandom(len(data) + 16)
        self._known[sealed] = bytes(data)
        return sealed

    def decrypt(self, sealed: bytes, **_: Any) -> bytes:
        if self._sick:
            raise self._sick
        if sealed not in self._known:
            raise self._bad_tag
        return self._known[sealed]


def open_unknown(device: Device) -> None:
    gcm.open_sealed(device, bytes(48), iv=bytes(12), associated=b"")


@pytest.mark.parametrize("bad_tag", [p11.GeneralError, p11.FunctionFailed, p11.PKCS11Error])
def test_an_ambiguous_failure_on_a_sound_device_is_the_blobs(bad_tag: type[Exception]) -> None:
    """A code that may mean anything is the blob's fault where the device works otherwise."""
    with pytest.raises(BlobRejected) as caught:
        open_unknown(Device(bad_tag=bad_tag))
    assert caught.value.__context__ is None


@pytest.mark.parametrize("sick", [p11.GeneralError, p11.FunctionFailed, p11.PKCS11Error])
def test_an_ambiguous_failure_on_a_sick_device_is_the_devices(sick: type[Exception]) -> None:
    """The same code where the device does not work at all is Unavailable, never BlobRejected."""
    with pytest.raises(Unavailable) as caught:
        open_unknown(Device(bad_tag=sick, sick=sick))
    assert caught.value.__context__ is None


@pytest.mark.parametrize("code", [p11.DeviceError, p11.SessionHandleInvalid, p11.HostMemory])
def test_a_clear_device_failure_needs_no_canary(code: type[Exception]) -> None:
    """A code that names the device passes through to the one seam."""
    with pytest.raises(code):
        open_unknown(Device(bad_tag=code))


def test_a_device_that_does_not_encrypt_is_not_sound() -> None:
    """A round trip through a device that returns the plaintext fails."""
    assert gcm.round_trip(Device(bad_tag=p11.GeneralError))
    assert not gcm.round_trip(Device(bad_tag=p11.GeneralError, clear=True))
    assert not gcm.round_trip(Device(bad_tag=p11.GeneralError, sick=p11.DeviceError))


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (p11.EncryptedDataInvalid, BlobRejected),
        (p11.EncryptedDataLenRange, BlobRejected),
        (p11.PinIncorrect, PinRefused),
        (p11.PinLocked, PinRefused),
        (p11.UserPinNotInitialized, PinRefused),
        (p11.MechanismInvalid, ConfigurationError),
        (p11.TemplateInconsistent, ConfigurationError),
        (p11.TokenWriteProtected, ConfigurationError),
        (p11.TokenNotPresent, Unavailable),
        (p11.UserNotLoggedIn, Unavailable),
        (p11.SessionCount, Unavailable),
        (p11.GeneralError, Unavailable),
        (p11.PKCS11Error, Unavailable),
        (ZeroDivisionError, Unavailable),
        (AttributeError, Unavailable),
    ],
)
def test_foreign_errors_become_ours_without_their_text(
    foreign: type[Exception], ours: type[HsmError]
) -> None:
    """Every foreign error becomes one of ours, told by its class and never by its text."""
    error = translate(foreign("secret text"))
    assert type(error) is ours
    assert foreign.__name__ in str(error)
    assert "secret" not in str(error)


def test_our_own_errors_stay_as_they_are() -> None:
    """What is one of ours already passes the seam unchanged."""
    error = KeyMissing("no such version")
    assert translate(error) is error


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        (0xA0, PinRefused),
        (0xA1, PinRefused),
        (0xA2, PinRefused),
        (0xA3, PinRefused),
        (0xA4, PinRefused),
        (0x102, PinRefused),
        (0x100, ConfigurationError),
        (0x104, ConfigurationError),
        (0x05, Unavailable),
        (0x30, Unavailable),
        (0x80000001, Unavailable),
    ],
)
def test_login_failures_by_their_codes(code: int, ours: type[HsmError]) -> None:
    """A failed login is told by its return value."""
    assert type(login_failure(code)) is ours
