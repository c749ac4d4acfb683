"""The key that signs the audit log's checkpoints, apart from the master key: opened and made."""

from dataclasses import replace
from pathlib import Path

from ironwork_audit.tlog import VerifierKey
from ironwork_hsm import Signer
from ironwork_hsm.signers import create_signing_key, open_signer
from ironwork_hsm.uri import Pkcs11Uri, parse_pkcs11_uri
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError
from ironwork_server.custody.checkpoints import verifier_key
from ironwork_server.custody.generate import generate_signing_key
from ironwork_server.journal import FileJournal, JournalError


async def open_audit_signer(settings: Settings) -> Signer:
    """The signer of the settings; the caller closes it. Errors: StartupError, HsmError."""
    return await open_signer(_checked_uri(settings))


async def create_audit_key(settings: Settings) -> VerifierKey:
    """Generate the key in its token; its public half. On record in the audit log, which no server
    may be using. Errors: StartupError, HsmError, Unavailable.
    """
    uri = _checked_uri(settings)
    try:
        journal = FileJournal.open(settings.audit.folder, settings.audit.origin)
    except JournalError as error:
        raise StartupError(str(error)) from None
    try:
        signer = await generate_signing_key(lambda: create_signing_key(uri), journal)
        try:
            return verifier_key(settings.audit.origin, signer)
        finally:
            await signer.close()
    finally:
        await journal.close()


async def show_audit_key(settings: Settings, origin: str) -> VerifierKey:
    """The public half of the key in the token, as the verifier key of a log that it signs. Errors:
    StartupError, HsmError.
    """
    signer = await open_audit_signer(settings)
    try:
        return verifier_key(origin, signer)
    finally:
        await signer.close()


def _checked_uri(settings: Settings) -> str:
    uri = settings.audit.signing_key
    if uri is None:
        raise StartupError(
            "audit.signing_key is not set: the audit log's checkpoints are signed by a key in a"
            " token of its own. Set it to that token's URI, and make the key with"
            " `ironwork-server audit-key create`."
        )
    _refuse_shared_token(uri, settings.master_key.uris)
    return uri


def _refuse_shared_token(signing_key: str, master_keys: tuple[str, ...]) -> None:
    """Whoever can unwrap keys must not be able to sign the log, nor the other way round."""
    if not signing_key.lower().startswith("pkcs11:"):
        return
    signing = parse_pkcs11_uri(signing_key)
    for text in master_keys:
        if not text.lower().startswith("pkcs11:"):
            continue
        master = parse_pkcs11_uri(text)
        if _token(signing) == _token(master):
            raise StartupError(
                "audit.signing_key names the master key's token: give it a token of its own."
            )
        if _same_file(signing.pin_source, master.pin_source):
            raise StartupError(
                "audit.signing_key names the master key's PIN file: give it a PIN of its own."
            )


def _token(uri: Pkcs11Uri) -> str:
    """Everything of a URI that says which token, and nothing that says which key."""
    return replace(uri, object="any").name


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
