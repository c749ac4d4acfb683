"""Whether two keys are as far apart as they must be: each in a token and under a PIN of its own."""

from dataclasses import replace
from pathlib import Path

from ironwork_hsm.interface import ConfigurationError
from ironwork_hsm.uri import SCHEME, Pkcs11Uri, parse_pkcs11_uri


def refuse_shared(setting: str, uri: str, *, whose: str, other: str) -> None:
    """Raise ConfigurationError where a setting's URI names the token or the PIN file of another
    key, whose (`the master key's`) URI is other. Keys that are not reached by PKCS#11 have neither.
    """
    if not (_is_pkcs11(uri) and _is_pkcs11(other)):
        return
    one, two = parse_pkcs11_uri(uri), parse_pkcs11_uri(other)
    if _token(one) == _token(two):
        raise ConfigurationError(f"{setting} names {whose} token: give it a token of its own.")
    if _same_file(one.pin_source, two.pin_source):
        raise ConfigurationError(f"{setting} names {whose} PIN file: give it a PIN of its own.")


def _is_pkcs11(uri: str) -> bool:
    return uri.partition(":")[0].lower() == SCHEME


def _token(uri: Pkcs11Uri) -> str:
    """Everything of a URI that says which token, and nothing that says which key."""
    return replace(uri, object="any").name


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
