"""`ironwork-hsmd audit-key`: the keys that sign logs, made in their tokens, on record.

Two kinds: record.signing_key, of this process' own record; and signer, of the server's log, which
the server asks for over the socket but cannot make.
"""

from ironwork_audit.publishing import log_key
from ironwork_audit.tlog import VerifierKey
from ironwork_hsm.daemon.operator import (
    open_operator_record,
    open_record_key,
    operator_origin,
    operator_record,
    recorded,
    signing,
    trying_pin,
)
from ironwork_hsm.daemon.record import LogRecord
from ironwork_hsm.daemon.settings import Settings
from ironwork_hsm.interface import ConfigurationError, Signer
from ironwork_hsm.signers import create_signing_key


async def create_record_key(settings: Settings) -> VerifierKey:
    """Generate the key of record.signing_key; its public half. Raises HsmError."""
    uri = _record_key(settings)
    record = open_operator_record(settings)
    try:
        if record.checkpoint() is not None:
            raise ConfigurationError(
                "The operator's record is signed already: a new key wants a new record.folder and"
                " record.origin."
            )
        signer = await _generate(settings, uri, record)
        try:
            async with signing(settings, record, signer):
                return _verifier_key(settings.record_origin, signer)
        finally:
            await signer.close()
    finally:
        await record.close()


async def create_server_key(settings: Settings) -> None:
    """Generate the key of signer; the server prints its verifier key. Raises HsmError."""
    if settings.signer is None:
        raise ConfigurationError("signer is not set: name the URI of the server's signing key.")
    async with operator_record(settings) as record:
        signer = await _generate(settings, settings.signer, record)
        await signer.close()


async def show_record_key(settings: Settings, *, operator: bool) -> VerifierKey:
    """What verifies the process' record, or that of the operator's commands. Raises HsmError."""
    signer = await open_record_key(settings, _record_key(settings))
    try:
        origin = operator_origin(settings) if operator else settings.record_origin
        return _verifier_key(origin, signer)
    finally:
        await signer.close()


def _record_key(settings: Settings) -> str:
    if settings.record_key is None:
        raise ConfigurationError(
            "record.signing_key is not set: this process' record is UNSIGNED. Name the URI of a"
            " key in a token of its own, and make it with: ironwork-hsmd audit-key create"
        )
    return settings.record_key


async def _generate(settings: Settings, uri: str, record: LogRecord) -> Signer:
    with trying_pin(settings, uri):
        return await recorded(
            record,
            "hsm.generate",
            {"purpose": "checkpoint"},
            lambda: create_signing_key(uri),
            lambda made: {"backend": made.name, "mechanism": made.algorithm.value},
        )


def _verifier_key(origin: str, signer: Signer) -> VerifierKey:
    return log_key(origin, signer.algorithm, signer.public_key)
