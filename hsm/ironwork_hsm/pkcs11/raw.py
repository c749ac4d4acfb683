"""One-shot C_Encrypt, C_Decrypt and C_Sign, straight from and into buffers that are wiped.

python-pkcs11 asks for the size of each result first (a second call in the device's log for each
operation), gives results as bytes that nobody can wipe, and cannot hand back what a device writes
into a parameter. Here each operation is one call of the initialising function and exactly one of
C_Encrypt, C_Decrypt or C_Sign (PKCS#11 2.40 sections 5.8, 5.9, 5.11).
"""

import ctypes
from collections.abc import Callable
from typing import Any

from ironwork_hsm.pkcs11.errors import CKR_OK, DeviceAnswer
from ironwork_hsm.pkcs11.module import CkMechanism, FunctionList

CKM_AES_CBC = 0x00001082
CKM_AES_GCM = 0x00001087
CKM_SHA256_HMAC = 0x00000251

# Larger than any result that is asked for (data key, tag and an appended IV: 64 bytes), so that
# CKR_BUFFER_TOO_SMALL, which would leave the operation open, does not occur.
_RESULT_BYTES = 128
_Result = ctypes.c_char * _RESULT_BYTES
_CLEARED = bytes(_RESULT_BYTES)

# What a parameter may be: a structure, or an array of bytes.
Parameter = ctypes.Structure | ctypes.Array[ctypes.c_char]


def copied(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """These bytes in memory that a structure can point to and a device write into."""
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


class GcmParameters(ctypes.Structure):
    """CK_GCM_PARAMS (PKCS#11 2.40 errata 01, section 2.12.3)."""

    _fields_ = (
        ("iv", ctypes.c_void_p),
        ("iv_length", ctypes.c_ulong),
        ("iv_bits", ctypes.c_ulong),
        ("associated", ctypes.c_void_p),
        ("associated_length", ctypes.c_ulong),
        ("tag_bits", ctypes.c_ulong),
    )


class RawKey:
    """A key handle in the one session that found it. For that session's thread only."""

    __slots__ = ("_functions", "_handle", "_session")

    def __init__(self, functions: FunctionList, session: int, handle: int) -> None:
        self._functions = functions
        self._session = session
        self._handle = handle

    def encrypt(self, mechanism: int, parameter: Parameter, data: bytearray) -> bytearray:
        """The ciphertext. Raises DeviceAnswer."""
        functions = self._functions
        return self._once(functions.C_EncryptInit, functions.C_Encrypt, mechanism, parameter, data)

    def decrypt(self, mechanism: int, parameter: Parameter, data: bytearray) -> bytearray:
        """The plaintext, for the caller to wipe. Raises DeviceAnswer."""
        functions = self._functions
        return self._once(functions.C_DecryptInit, functions.C_Decrypt, mechanism, parameter, data)

    def sign(self, mechanism: int, data: bytearray) -> bytearray:
        """The signature or MAC, for the caller to wipe. Raises DeviceAnswer."""
        functions = self._functions
        return self._once(functions.C_SignInit, functions.C_Sign, mechanism, None, data)

    def _once(
        self,
        initialise: Callable[..., Any],
        operate: Callable[..., Any],
        mechanism: int,
        parameter: Parameter | None,
        data: bytearray,
    ) -> bytearray:
        source = (ctypes.c_char * len(data)).from_buffer(data)
        output = bytearray(_RESULT_BYTES)
        target = _Result.from_buffer(output)
        length = ctypes.c_ulong(_RESULT_BYTES)
        described = CkMechanism(mechanism, None, 0)
        if parameter is not None:
            described.parameter = ctypes.addressof(parameter)
            described.parameter_length = ctypes.sizeof(parameter)
        # Nothing may fail between the two calls: the session would be left in an operation.
        code = initialise(self._session, ctypes.byref(described), self._handle)
        if code != CKR_OK:
            raise DeviceAnswer(code)
        code = operate(self._session, source, len(data), target, ctypes.byref(length))
        try:
            if code != CKR_OK:
                raise DeviceAnswer(code)
            return output[: length.value]
        finally:
            # Also where it failed: a module may write plaintext before it compares a tag.
            output[:] = _CLEARED
