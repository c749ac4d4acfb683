"""Loads and initialises PKCS#11 libraries: the one place in a process that does.

python-pkcs11 calls C_Initialize(NULL), which tells the library that the process has one thread,
and then releases the GIL in every call; with several threads that crashes or hangs SoftHSM. So
C_Initialize is called here, by ctypes, with CKF_OS_LOCKING_OK (PKCS#11 2.40 section 5.4), and
python-pkcs11's library object is made without its own C_Initialize. That leans on the internals
of one version of it, which is therefore checked, and what was done is verified each time.
"""

import ctypes
import importlib.metadata
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pkcs11.exceptions
from pkcs11 import _pkcs11

from ironwork_hsm.interface import ConfigurationError, HsmError, Unavailable
from ironwork_hsm.pkcs11.errors import (
    CKR_ARGUMENTS_BAD,
    CKR_CANT_LOCK,
    CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_NEED_TO_CREATE_THREADS,
    CKR_OK,
    login_failure,
)
from ironwork_hsm.pkcs11.recovery import Turnstile

SUPPORTED_VERSION = "0.10.1"
_CKF_OS_LOCKING_OK = 0x00000002
CKU_SO = 0
CKU_USER = 1
_WITHOUT_LOCKING = (
    "The PKCS#11 module {path} was initialised by other code in this process, without thread "
    "locking; calls from several threads would crash it. Let only Ironwork open it."
)
_AFTER_FORK = (
    "The PKCS#11 module was initialised before this process was forked off; a module cannot be "
    "used on both sides of a fork. Open the backend in the process that uses it."
)


def check_library_version(version: str) -> None:
    """Raise ConfigurationError unless this is the python-pkcs11 whose internals we know."""
    if version != SUPPORTED_VERSION:
        raise ConfigurationError(
            f"python-pkcs11 {version} is installed, but the thread-safe start of HSM libraries is "
            f"proven for {SUPPORTED_VERSION} only; install that version."
        )


check_library_version(importlib.metadata.version("python-pkcs11"))


class _InitializeArgs(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS: no mutex functions of our own, so the library uses the system's."""

    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


_Initialize = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.POINTER(_InitializeArgs))
_Finalize = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)
_Login = ctypes.CFUNCTYPE(
    ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong
)
_Logout = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong)


class _SessionInfo(ctypes.Structure):
    """CK_SESSION_INFO (PKCS#11 2.40 section 3.3)."""

    _fields_ = (
        ("slot", ctypes.c_ulong),
        ("state", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("device_error", ctypes.c_ulong),
    )


_GetSessionInfo = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.POINTER(_SessionInfo))
# CKS_RO_USER_FUNCTIONS, CKS_RW_USER_FUNCTIONS.
_LOGGED_IN = (1, 3)


class CkMechanism(ctypes.Structure):
    """CK_MECHANISM (PKCS#11 2.40 section 3.5)."""

    _fields_ = (
        ("mechanism", ctypes.c_ulong),
        ("parameter", ctypes.c_void_p),
        ("parameter_length", ctypes.c_ulong),
    )


# C_EncryptInit, C_DecryptInit, C_SignInit: session, mechanism, key.
_Start = ctypes.CFUNCTYPE(
    ctypes.c_ulong, ctypes.c_ulong, ctypes.POINTER(CkMechanism), ctypes.c_ulong
)
# C_Encrypt, C_Decrypt, C_Sign: session, data, its length, result, its length.
_Operate = ctypes.CFUNCTYPE(
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_ulong),
)


class FunctionList(ctypes.Structure):
    """The head of CK_FUNCTION_LIST (PKCS#11 2.40, pkcs11f.h), in its order, up to C_Sign. What
    lies between is what python-pkcs11 calls where it is needed.
    """

    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        ("C_Initialize", _Initialize),
        ("C_Finalize", _Finalize),
        ("C_GetInfo_to_C_CloseAllSessions", ctypes.c_void_p * 13),
        ("C_GetSessionInfo", _GetSessionInfo),
        ("C_GetOperationState_C_SetOperationState", ctypes.c_void_p * 2),
        ("C_Login", _Login),
        ("C_Logout", _Logout),
        ("C_CreateObject_to_C_FindObjectsFinal", ctypes.c_void_p * 9),
        ("C_EncryptInit", _Start),
        ("C_Encrypt", _Operate),
        ("C_EncryptUpdate_to_C_EncryptFinal", ctypes.c_void_p * 2),
        ("C_DecryptInit", _Start),
        ("C_Decrypt", _Operate),
        ("C_DecryptUpdate_to_C_DigestFinal", ctypes.c_void_p * 7),
        ("C_SignInit", _Start),
        ("C_Sign", _Operate),
    )


@dataclass(frozen=True, slots=True)
class Module:
    """An initialised library. library: python-pkcs11's `lib`. init_args: what C_Initialize got in
    pReserved. turnstile: whoever calls a function enters by it. Lives as long as the process.
    """

    path: str
    library: Any
    functions: FunctionList
    pid: int
    init_args: str | None = None
    turnstile: Turnstile = field(default_factory=Turnstile)

    def check_process(self) -> None:
        """Raise ConfigurationError in a process that was forked off since."""
        if self.is_foreign():
            raise ConfigurationError(_AFTER_FORK)

    def is_foreign(self) -> bool:
        """Whether this process was forked off since the module was initialised."""
        return os.getpid() != self.pid

    def login(self, session_handle: int, pin: bytearray, user: int = CKU_USER) -> None:
        """C_Login as the normal user or CKU_SO, straight from the caller's buffer.

        Not by python-pkcs11, which makes copies of the PIN that nobody can wipe and leaks the
        session when the PIN is refused. Raises PinRefused, ConfigurationError, Unavailable.
        """
        buffer = (ctypes.c_char * len(pin)).from_buffer(pin)
        code = self.functions.C_Login(session_handle, user, ctypes.addressof(buffer), len(pin))
        if code != CKR_OK:
            raise login_failure(code)

    def logout(self, session_handle: int) -> None:
        """C_Logout; whatever it answers, the sessions are closed next."""
        self.functions.C_Logout(session_handle)

    def logged_in(self, session_handle: int) -> bool:
        """Whether the session sees private objects (C_GetSessionInfo); False where it is lost."""
        info = _SessionInfo()
        code = self.functions.C_GetSessionInfo(session_handle, ctypes.byref(info))
        return code == CKR_OK and info.state in _LOGGED_IN

    def restart(self) -> None:
        """C_Finalize and C_Initialize, with nothing inside the module: every session and login of
        the process is over. Blocks. Raises ConfigurationError, Unavailable; then the module is not
        initialised until another restart.
        """
        self.check_process()
        with self.turnstile.alone():
            # Whatever it answers: after a restart that failed there is nothing to finalise.
            self.functions.C_Finalize(None)
            _initialize(self.path, self.functions, self.init_args)
            _verify(self.path, self.functions, self.library)


# Both are owned by load_module; _modules is read and written under _lock only.
_lock = threading.Lock()
_modules: dict[str, Module] = {}
_first_pid: int | None = None


def load_module(path: Path, init_args: str | None = None) -> Module:
    """The initialised library at path; initialises it once per process. Blocks.

    init_args: a string for C_Initialize's pReserved, for libraries that want one (NSS). Raises
    ConfigurationError (no such library, used by other code or with other init_args, or after a
    fork) and Unavailable (the library cannot reach its device).
    """
    global _first_pid  # noqa: PLW0603  a library's state is the process's; this is its one record
    if _first_pid not in (None, os.getpid()):
        # Before the lock: a thread that the fork left behind may hold it.
        raise ConfigurationError(_AFTER_FORK)
    real = os.path.realpath(path)
    with _lock:
        module = _modules.get(real)
        if module is None:
            module = _load(real, init_args)
            _modules[real] = module
            _first_pid = module.pid
        elif module.init_args != init_args:
            raise ConfigurationError(
                f"The PKCS#11 module {real} is initialised in this process with other "
                "ironwork-init-args; a process can give it one set only."
            )
        return module


def _load(path: str, init_args: str | None) -> Module:
    functions = _function_list(path)
    _initialize(path, functions, init_args)
    try:
        library = _library_without_initialize(path)
        _verify(path, functions, library)
    except HsmError:
        functions.C_Finalize(None)
        raise
    return Module(
        path=path, library=library, functions=functions, pid=os.getpid(), init_args=init_args
    )


def _initialize(path: str, functions: FunctionList, init_args: str | None) -> None:
    arguments = _InitializeArgs(flags=_CKF_OS_LOCKING_OK)
    if init_args is not None:
        reserved = ctypes.create_string_buffer(init_args.encode("utf-8"))
        arguments.reserved = ctypes.addressof(reserved)
    code = functions.C_Initialize(ctypes.byref(arguments))
    if code != CKR_OK:
        raise _initialize_failure(path, code)


def _function_list(path: str) -> FunctionList:
    if not Path(path).is_file():
        raise ConfigurationError(
            f"There is no PKCS#11 module at {path}; mend `module-path` or install the library."
        )
    try:
        library = ctypes.CDLL(path)
        get_function_list = library.C_GetFunctionList
    except (OSError, AttributeError):
        raise ConfigurationError(f"{path} is not a PKCS#11 module for this machine.") from None
    get_function_list.restype = ctypes.c_ulong
    pointer = ctypes.POINTER(FunctionList)()
    code = get_function_list(ctypes.byref(pointer))
    if code != CKR_OK:
        raise ConfigurationError(f"The PKCS#11 module {path} gives no function list.")
    return pointer.contents


def _initialize_failure(path: str, code: int) -> HsmError:
    if code == CKR_CRYPTOKI_ALREADY_INITIALIZED:
        return ConfigurationError(_WITHOUT_LOCKING.format(path=path))
    if code in (CKR_CANT_LOCK, CKR_NEED_TO_CREATE_THREADS, CKR_ARGUMENTS_BAD):
        return ConfigurationError(
            f"The PKCS#11 module {path} cannot be used from several threads (CKR 0x{code:03x})."
        )
    return Unavailable(
        f"The PKCS#11 module {path} did not initialise (CKR 0x{code:03x}); check its own "
        "configuration file."
    )


def _library_without_initialize(path: str) -> Any:
    """python-pkcs11's library object, whose __init__ (it calls C_Initialize) is left out."""
    library_class: Any = _pkcs11.lib
    try:
        return library_class.__new__(library_class, path)
    except pkcs11.exceptions.PKCS11Error:
        raise ConfigurationError(f"{path} is not a PKCS#11 module for this machine.") from None


def _verify(path: str, functions: FunctionList, library: Any) -> None:
    """That the library took our C_Initialize, and that python-pkcs11 speaks to the same one."""
    again = functions.C_Initialize(None)
    if again != CKR_CRYPTOKI_ALREADY_INITIALIZED:
        raise ConfigurationError(
            f"The PKCS#11 module {path} did not keep its thread locking (CKR 0x{again:03x})."
        )
    if library.initialized:
        raise ConfigurationError(_WITHOUT_LOCKING.format(path=path))
    try:
        library.initialize()
    except pkcs11.exceptions.PKCS11Error:
        return
    # Its C_Initialize(NULL) was accepted: it has a copy of the library that ours did not reach.
    raise ConfigurationError(_WITHOUT_LOCKING.format(path=path))
