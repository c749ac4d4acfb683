"""Doctor: master keys in a cloud's KMS. Asks what may be asked without using a key, and says what
cannot be known so.
"""

from collections.abc import Iterator

from ironwork_hsm import ConfigurationError, HsmError, KeyMissing
from ironwork_hsm.backends import inspect_service
from ironwork_hsm.kms_report import KmsReport
from ironwork_server.app.doctor_report import Finding, fail, ok, warn

POWER = "hsm what this server could do"
_PROBE = "ironwork-server doctor --probe"


async def kms_key(uri: str) -> list[Finding]:
    """The key at uri, and what these credentials may do with it."""
    name = uri.partition("?")[0]
    try:
        report = await inspect_service(uri)
    except HsmError as error:
        return [fail(f"hsm {name}", str(error), _mend(error))]
    return [*findings(report)]


def findings(report: KmsReport) -> Iterator[Finding]:
    """What a report comes to."""
    check = f"hsm {report.name}"
    yield _state(check, report)
    if report.imported:
        yield warn(
            f"{check} origin",
            "its material was imported: it was elsewhere before, and may be there still",
            "Rotate to a key that the cloud's HSM has made.",
        )
    if report.expires:
        yield warn(
            f"{check} expiry",
            "its imported material goes by itself at a set time; then no key opens",
            "Have its owner import it without an expiry, or move to a key that has none.",
        )
    if report.lasting:
        yield warn(
            f"{check} credentials",
            "an access key that does not end by itself: whoever copies it may use the master key",
            "Use the role of this machine, pod or job, which the cloud renews.",
        )
    yield _powers(report)


def _state(check: str, report: KmsReport) -> Finding:
    said = ", ".join(part for part in (report.state, report.kind, report.place) if part)
    if report.usable is None:
        return ok(
            check,
            f"in {report.place}; that it is enabled only a viewer may read, and the server need"
            f" not be one: {_PROBE} tries it",
        )
    if not report.usable:
        return fail(check, said, "Have its owner enable it, or restore it: no key opens without.")
    return ok(check, said)


def _powers(report: KmsReport) -> Finding:
    if report.allowed is None:
        return ok(
            POWER,
            "AWS tells nobody without its being tried: whether it may encrypt and decrypt,"
            f" {_PROBE} shows; what else, only the policies of the key and the role"
            " (docs/master-key.md has the smallest)",
        )
    missing = [name for name in report.needed if name not in report.allowed]
    if missing:
        return fail(
            POWER,
            f"on this key, in this place, it lacks {', '.join(missing)}",
            "See that project, location, key ring and key are right; then grant"
            " roles/cloudkms.cryptoKeyEncrypterDecrypter on the key.",
        )
    more = [name for name in report.further if name in report.allowed]
    if more:
        return warn(
            POWER,
            f"encrypt, decrypt, and {', '.join(more)}",
            "Give it roles/cloudkms.cryptoKeyEncrypterDecrypter on this key, and nothing more.",
        )
    return ok(POWER, "encrypt and decrypt with this key; not change, destroy or give it away")


def _mend(error: HsmError) -> str:
    if isinstance(error, KeyMissing):
        return "See that region, account and key of the URI in master_key.uris are right."
    if isinstance(error, ConfigurationError):
        return "Mend what it names: the URI in master_key.uris, or this machine's role."
    return "See that the cloud's KMS can be reached from here, and is not down."
