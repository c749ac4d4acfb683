"""Every foreign error becomes one of ours, decided on types and codes."""

import pkcs11.exceptions as p11
import pytest

from ironwork_hsm import (
    BlobRejected,
    ConfigurationError,
    HsmError,
    KeyMissing,
    PinRefused,
    Unavailable,
)
from ironwork_hsm.pkcs11.errors import DeviceAnswer, NotOffered, login_failure, translate


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


@pytest.mark.parametrize("foreign", [p11.MechanismInvalid, p11.TemplateInconsistent])
def test_an_error_names_the_kind_of_key(foreign: type[Exception]) -> None:
    """What a token lacks is told of the key that was asked for: a master key or a signing key."""
    assert "a master key" in str(translate(foreign()))
    assert "a signing key" in str(translate(foreign(), noun="signing key"))


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
        (0x30, Unavailable),
        (0x32, Unavailable),
        (0xB3, Unavailable),
        (0xE0, Unavailable),
        (0x190, Unavailable),
        (0x05, PinRefused),
        (0x06, PinRefused),
        (0x103, PinRefused),
        (0x80000001, PinRefused),
    ],
)
def test_login_failures_by_their_codes(code: int, ours: type[HsmError]) -> None:
    """A failed login is told by its return value; one that does not clearly accuse the device is
    taken for a refused PIN, since repeating that would lock the token.
    """
    assert type(login_failure(code)) is ours


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        (0x05, Unavailable),
        (0x30, Unavailable),
        (0x40, BlobRejected),
        (0x41, BlobRejected),
        (0x42, BlobRejected),
        (0x54, ConfigurationError),
        (0x70, ConfigurationError),
        (0x71, ConfigurationError),
        (0x82, Unavailable),
        (0x101, Unavailable),
        (0x80000001, Unavailable),
    ],
)
def test_operations_fail_by_their_codes(code: int, ours: type[HsmError]) -> None:
    """A failed operation is told by its return value, which the error shows."""
    error = translate(DeviceAnswer(code))
    assert type(error) is ours
    assert f"0x{code:03x}" in str(error)


def test_a_device_that_does_something_else_is_configured_wrongly() -> None:
    """A device that does not keep to a mechanism is named so, not as a fault that will pass."""
    assert type(translate(NotOffered())) is ConfigurationError


@pytest.mark.parametrize(
    ("codes", "property_of"),
    [
        ((0x05, 0x06, 0x20, 0x21, 0x123, 0x80000001), "ambiguous"),
        ((0x40, 0x41, 0x42), "rejected"),
        ((0x07, 0x54, 0x63, 0x68, 0x70, 0x71), "refused"),
        ((0x02, 0x30, 0x32, 0x60, 0x82, 0x90, 0xB3, 0xE0, 0x101, 0x150, 0x190), ""),
    ],
)
def test_whose_fault_a_code_tells(codes: tuple[int, ...], property_of: str) -> None:
    """A code accuses the blob, the configuration or the device, or leaves it open; never two."""
    for code in codes:
        answer = DeviceAnswer(code)
        told = [name for name in ("ambiguous", "rejected", "refused") if getattr(answer, name)]
        assert told == ([property_of] if property_of else [])
