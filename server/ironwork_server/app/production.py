"""`ironwork-server serve`: production. Refuses everything that is marked `dev`."""

from collections.abc import Collection
from pathlib import Path

from ironwork_hsm.uri import parse_pkcs11_uri
from ironwork_server import store
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.tls import ServerTls
from ironwork_server.app.dev.tokens import TOKEN_LABEL
from ironwork_server.app.devpki import is_dev_ca
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError, refuse_shared_place

# OpenSC's recorder of PKCS#11 calls; under another name it still needs PKCS11SPY, see startup.py.
_RECORDER = "pkcs11-spy"
_NOT_IN_PRODUCTION = "; it was made by `ironwork-server dev` and is not for production."


def check_production(settings: Settings) -> None:
    """Refuse what is not fit to serve. Errors: StartupError, ironwork_hsm.ConfigurationError."""
    _refuse_dev_certificates(settings)
    pins = _refuse_dev_tokens(settings)
    refuse_shared_place(pins, [settings.store.path])
    if store.marker(settings.store.url) == store.DEV:
        raise StartupError(f"store.url is marked dev{_NOT_IN_PRODUCTION}")


def check_tls(tls: ServerTls) -> None:
    """The same for certificates that are read later: a reload must not bring in what a start
    refuses. Errors: AccessConfigurationError.
    """
    for name, pem in (("certificate", tls.certificate_chain), ("client_ca", tls.client_ca)):
        if is_dev_ca(pem):
            raise AccessConfigurationError(
                f"tls.{name}", f"comes from a throw-away CA{_NOT_IN_PRODUCTION}"
            )


def check_key(setting: str, names: Collection[str]) -> None:
    """Refuse a dev token also where the HSM process holds it. names: of the keys that the setting
    leads to. Errors: StartupError.
    """
    if any(f":token={TOKEN_LABEL}" in name for name in names):
        raise StartupError(f"{setting} leads to the token {TOKEN_LABEL}{_NOT_IN_PRODUCTION}")


def _refuse_dev_certificates(settings: Settings) -> None:
    for name in ("certificate", "client_ca"):
        path: Path = getattr(settings.tls, name)
        try:
            dev = is_dev_ca(path.read_bytes())
        except OSError as error:
            raise StartupError(f"tls.{name}: {path} cannot be read ({error.strerror}).") from None
        except ValueError:
            raise StartupError(f"tls.{name}: {path} holds no PEM certificates.") from None
        if dev:
            raise StartupError(f"tls.{name} comes from a throw-away CA{_NOT_IN_PRODUCTION}")


def _refuse_dev_tokens(settings: Settings) -> list[Path]:
    pins = []
    named = [("master_key.uris", uri) for uri in settings.master_key.uris]
    if settings.audit.signing_key is not None:
        named.append(("audit.signing_key", settings.audit.signing_key))
    for name, uri in named:
        if not uri.lower().startswith("pkcs11:"):
            # open_backend says which schemes there are.
            continue
        parsed = parse_pkcs11_uri(uri)
        if parsed.token is None:
            # By its serial number or slot a dev token could not be told from another.
            raise StartupError(f"{name}: name the token by its label (token=…) as well.")
        if parsed.token.startswith(TOKEN_LABEL):
            raise StartupError(f"{name} names the token {TOKEN_LABEL}{_NOT_IN_PRODUCTION}")
        if parsed.module_path.resolve().name.startswith(_RECORDER):
            raise StartupError(
                f"{name} names pkcs11-spy, which writes PINs and data keys into a file: name the"
                " HSM's own module."
            )
        pins.append(parsed.pin_source)
    return pins
