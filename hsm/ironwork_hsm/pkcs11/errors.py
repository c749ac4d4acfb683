"""The one place where a PKCS#11 failure becomes one of ours.

Decided on classes and return values, most specific first, never on text. Messages are written
here; of the foreign error only its class name or its number is told (both are constants of the
PKCS#11 specification), since its text may quote what it was given.
"""

import pkcs11.exceptions as p11

from ironwork_hsm.interface import (
    BlobRejected,
    ConfigurationError,
    HsmError,
    PinRefused,
    Unavailable,
)

# Return values (CK_RV, PKCS#11 2.40 section 4.2) of the few functions that we call ourselves.
CKR_OK = 0x000
CKR_ARGUMENTS_BAD = 0x007
CKR_NEED_TO_CREATE_THREADS = 0x009
CKR_CANT_LOCK = 0x00A
CKR_PIN_INCORRECT = 0x0A0
CKR_PIN_INVALID = 0x0A1
CKR_PIN_LEN_RANGE = 0x0A2
CKR_PIN_EXPIRED = 0x0A3
CKR_PIN_LOCKED = 0x0A4
CKR_USER_ALREADY_LOGGED_IN = 0x100
CKR_USER_PIN_NOT_INITIALIZED = 0x102
CKR_USER_ANOTHER_ALREADY_LOGGED_IN = 0x104
CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191

_LOGGED_IN_ELSEWHERE = (
    "Other code in this process is already logged in to the token, so the PIN was not checked; "
    "let only one of them open the token."
)

_PIN_REFUSALS = {
    CKR_PIN_INCORRECT: "The token refused the PIN. It is not tried again: tokens lock after a few.",
    CKR_PIN_INVALID: "The token says that the PIN holds characters it does not accept.",
    CKR_PIN_LEN_RANGE: "The token says that the PIN is too short or too long.",
    CKR_PIN_EXPIRED: "The token says that the PIN has expired; set a new one.",
    CKR_PIN_LOCKED: "The PIN is locked; the token's security officer has to unlock it.",
    CKR_USER_PIN_NOT_INITIALIZED: "The token has no user PIN yet; initialise it first.",
}

# A failed decryption that may be the blob's fault or the device's. SoftHSM reports a wrong
# GCM tag as GeneralError; a code that python-pkcs11 does not know (CKR_AEAD_DECRYPT_FAILED of
# PKCS#11 3.0, vendors' own) comes as a plain PKCS11Error.
_AMBIGUOUS = (p11.GeneralError, p11.FunctionFailed, p11.DataInvalid, p11.DataLenRange)

# First match wins, so subclasses and the specific stand before the general.
_MAPPED: tuple[tuple[tuple[type[Exception], ...], type[HsmError], str], ...] = (
    (
        (p11.EncryptedDataInvalid, p11.EncryptedDataLenRange),
        BlobRejected,
        "The wrapped key does not open in this context.",
    ),
    (
        (
            p11.PinIncorrect,
            p11.PinInvalid,
            p11.PinLenRange,
            p11.PinExpired,
            p11.PinLocked,
            p11.UserPinNotInitialized,
        ),
        PinRefused,
        "The token refused the PIN.",
    ),
    (
        (p11.MechanismInvalid, p11.MechanismParamInvalid, p11.FunctionNotSupported),
        ConfigurationError,
        "The token does not offer what a master key needs (AES-GCM by C_Encrypt).",
    ),
    (
        (
            p11.AttributeReadOnly,
            p11.AttributeTypeInvalid,
            p11.AttributeValueInvalid,
            p11.TemplateIncomplete,
            p11.TemplateInconsistent,
        ),
        ConfigurationError,
        "The token refused the attributes that a master key must have.",
    ),
    (
        (p11.TokenWriteProtected, p11.SessionReadOnly),
        ConfigurationError,
        "The token is write-protected, so no key can be created in it.",
    ),
    ((p11.UserNotLoggedIn,), Unavailable, "The login at the token was lost."),
    (
        (p11.TokenNotPresent, p11.NoSuchToken, p11.DeviceRemoved),
        Unavailable,
        "The token is gone.",
    ),
    (
        (p11.SessionCount,),
        Unavailable,
        "The token has no session left for us; close other users of it or use fewer lanes.",
    ),
    ((p11.PKCS11Error,), Unavailable, "The HSM answered with a fault."),
)


def translate(error: Exception) -> HsmError:
    """Our error for any exception. The result carries no context: raise it as it is."""
    if isinstance(error, HsmError):
        return error
    for kinds, ours, sentence in _MAPPED:
        if isinstance(error, kinds):
            return ours(f"{sentence} ({type(error).__name__})")
    return Unavailable(f"The HSM backend failed unexpectedly. ({type(error).__name__})")


def is_ambiguous(error: Exception) -> bool:
    """Whether a decryption that failed so says nothing about whose fault it was."""
    return isinstance(error, _AMBIGUOUS) or type(error) is p11.PKCS11Error


def login_failure(code: int) -> HsmError:
    """Our error for a return value of C_Login other than CKR_OK."""
    if code in _PIN_REFUSALS:
        return PinRefused(_PIN_REFUSALS[code])
    if code in (CKR_USER_ALREADY_LOGGED_IN, CKR_USER_ANOTHER_ALREADY_LOGGED_IN):
        return ConfigurationError(_LOGGED_IN_ELSEWHERE)
    return Unavailable(f"The login at the token failed (CKR 0x{code:03x}).")
