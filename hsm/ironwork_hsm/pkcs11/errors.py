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
CKR_USER_NOT_LOGGED_IN = 0x101
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

# HOST_MEMORY, SLOT_ID_INVALID, DEVICE_ERROR, DEVICE_MEMORY, DEVICE_REMOVED, SESSION_CLOSED,
# SESSION_COUNT, SESSION_HANDLE_INVALID, TOKEN_NOT_PRESENT, TOKEN_NOT_RECOGNIZED,
# CRYPTOKI_NOT_INITIALIZED: C_Login did not get as far as the PIN, and may be repeated.
_LOGIN_FAULTS = frozenset(
    {0x002, 0x003, 0x030, 0x031, 0x032, 0x0B0, 0x0B1, 0x0B3, 0x0E0, 0x0E1, 0x190}
)

# What an operation of our own (raw.py) may answer. ENCRYPTED_DATA_INVALID and _LEN_RANGE, and
# AEAD_DECRYPT_FAILED of PKCS#11 3.0: the ciphertext is not one of this key's.
_NOT_OURS = frozenset({0x040, 0x041, 0x042})
# ARGUMENTS_BAD, FUNCTION_NOT_SUPPORTED, KEY_TYPE_INCONSISTENT, KEY_FUNCTION_NOT_PERMITTED,
# MECHANISM_INVALID, MECHANISM_PARAM_INVALID: the device does not do this with this key.
_NOT_OFFERED = frozenset({0x007, 0x054, 0x063, 0x068, 0x070, 0x071})
# HOST_MEMORY, SLOT_ID_INVALID, DEVICE_ERROR, DEVICE_MEMORY, DEVICE_REMOVED, FUNCTION_CANCELED,
# KEY_HANDLE_INVALID, OBJECT_HANDLE_INVALID, OPERATION_ACTIVE, OPERATION_NOT_INITIALIZED,
# SESSION_CLOSED, SESSION_COUNT, SESSION_HANDLE_INVALID, TOKEN_NOT_PRESENT, TOKEN_NOT_RECOGNIZED,
# USER_NOT_LOGGED_IN, BUFFER_TOO_SMALL, CRYPTOKI_NOT_INITIALIZED: the device's fault, not a blob's.
_DEVICE_FAULTS = frozenset(
    {0x002, 0x003, 0x030, 0x031, 0x032, 0x050, 0x060, 0x082, 0x090, 0x091}
    | {0x0B0, 0x0B1, 0x0B3, 0x0E0, 0x0E1, 0x101, 0x150, 0x190}
)


class DeviceAnswer(Exception):
    """An operation's return value (CK_RV) other than CKR_OK. Never leaves a lane."""

    def __init__(self, code: int) -> None:
        super().__init__(f"CKR 0x{code:03x}")
        self.code = code

    @property
    def rejected(self) -> bool:
        """Whether the device says that the ciphertext is not one of this key's."""
        return self.code in _NOT_OURS

    @property
    def refused(self) -> bool:
        """Whether the device does not offer the operation with this key."""
        return self.code in _NOT_OFFERED

    @property
    def ambiguous(self) -> bool:
        """Whether a decryption that failed so says nothing about whose fault it was. SoftHSM
        reports a wrong GCM tag as GENERAL_ERROR; vendors have codes of their own.
        """
        return self.code not in _NOT_OURS | _NOT_OFFERED | _DEVICE_FAULTS


# First match wins, so subclasses and the specific stand before the general. {noun}: the kind of key
# that was asked for.
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
        "The token does not offer what a {noun} needs.",
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
        "The token refused the attributes that a {noun} must have.",
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


class NotOffered(Exception):
    """The device did something else than the mechanism asks for. Never leaves a lane."""


def translate(error: Exception, noun: str = "master key") -> HsmError:
    """Our error for any exception. The result carries no context: raise it as it is. noun: the kind
    of key that was asked for.
    """
    if isinstance(error, HsmError):
        return error
    if isinstance(error, DeviceAnswer):
        return _operation_failure(error)
    if isinstance(error, NotOffered):
        return ConfigurationError("The token does not do what this mechanism asks for.")
    for kinds, ours, sentence in _MAPPED:
        if isinstance(error, kinds):
            return ours(f"{sentence.format(noun=noun)} ({type(error).__name__})")
    return Unavailable(f"The HSM backend failed unexpectedly. ({type(error).__name__})")


def _operation_failure(answer: DeviceAnswer) -> HsmError:
    if answer.rejected:
        return BlobRejected(f"The wrapped key does not open in this context. ({answer})")
    if answer.refused:
        return ConfigurationError(
            f"The token does not offer this mechanism with this key. ({answer})"
        )
    if answer.code == CKR_USER_NOT_LOGGED_IN:
        return Unavailable(f"The login at the token was lost. ({answer})")
    return Unavailable(f"The HSM answered with a fault. ({answer})")


def login_failure(code: int) -> HsmError:
    """Our error for a return value of C_Login other than CKR_OK. One that is not known to be the
    device's fault is taken for a refusal: vendors report a wrong PIN by codes of their own, and
    repeating it would lock the token.
    """
    if code in _PIN_REFUSALS:
        return PinRefused(_PIN_REFUSALS[code])
    if code in (CKR_USER_ALREADY_LOGGED_IN, CKR_USER_ANOTHER_ALREADY_LOGGED_IN):
        return ConfigurationError(_LOGGED_IN_ELSEWHERE)
    if code in _LOGIN_FAULTS:
        return Unavailable(f"The login at the token failed (CKR 0x{code:03x}).")
    return PinRefused(
        f"The login at the token failed by a code that may mean a wrong PIN (CKR 0x{code:03x}). It "
        "is not tried again: tokens lock after a few."
    )
