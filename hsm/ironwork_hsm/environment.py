"""Environment variables that make a library below us print what it handles, or weaken TLS. Both
programs that handle data keys, the server and the HSM process, refuse to start with any of them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Variable: what is wrong with it.
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "GRPC_TRACE": "it makes gRPC print messages, and with them keys",
        "GRPC_SSL_CIPHER_SUITES": (
            "it makes gRPC agree on other ciphers than its own, weak ones too"
        ),
        "GOOGLE_SDK_PYTHON_LOGGING_SCOPE": "it makes Google's libraries print data keys",
        "SSLKEYLOGFILE": "it makes TLS write its session keys",
        "PKCS11SPY": "it points pkcs11-spy at the HSM, which writes PINs and data keys into a file",
        "PYTHONASYNCIODEBUG": "asyncio's debug mode prints what its callbacks hold",
        "PYTHONDEVMODE": "it turns on asyncio's debug mode, which prints what callbacks hold",
    }
)


def refused_in(environ: Mapping[str, str]) -> str | None:
    """Why a program does not start in this environment, and the mend; None where it may. The
    variable's value is not in it.
    """
    for name, why in REFUSED.items():
        if environ.get(name):
            return f"{name} is set: {why}. Unset it and start again."
    return None
