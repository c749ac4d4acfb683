"""The key that signs the audit log's checkpoints, apart from the master key: opened and made."""

from ironwork_audit.tlog import VerifierKey
from ironwork_hsm import ConfigurationError, Signer
from ironwork_hsm.apart import refuse_shared
from ironwork_hsm.signers import create_signing_key, open_signer
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
    # Whoever can unwrap keys must not be able to sign the log, nor the other way round.
    for master in settings.master_key.uris:
        try:
            refuse_shared("audit.signing_key", uri, whose="the master key's", other=master)
        except ConfigurationError as error:
            raise StartupError(str(error)) from None
    return uri
