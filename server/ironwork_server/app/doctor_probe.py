"""Doctor, where it is asked to use the master keys: a round trip with each, on record."""

from ironwork_hsm import HsmError
from ironwork_hsm.backends import open_backend
from ironwork_hsm.pkcs11.inspect import inspect_token
from ironwork_hsm.uri import SCHEME, parse_pkcs11_uri
from ironwork_server.app.doctor_report import Finding, fail, ok
from ironwork_server.app.operator import commands_folder, recording
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError
from ironwork_server.core.errors import IronworkError
from ironwork_server.custody.operator_records import OperatorRecords, prove

_MEND = "What is wrong stands above, or in the reason's line in docs/api.md."


async def probe(settings: Settings) -> list[Finding]:
    """Wraps and unwraps a known value with each URI's master key, as an operator's command: each
    round trip is in the commands' log. Nothing of the store is touched.
    """
    try:
        async with recording(settings) as (_, records):
            return [await _probe(uri, records) for uri in settings.master_key.uris]
    except (StartupError, HsmError, IronworkError) as error:
        says = error.message if isinstance(error, IronworkError) else str(error)
        mend = f"The probe is done on record: mend the commands' log, {commands_folder(settings)}."
        return [fail("probe", says, mend)]


async def _probe(uri: str, records: OperatorRecords) -> Finding:
    check = f"probe {uri.partition('?')[0]}"
    try:
        if await _would_spend_a_try(uri):
            mend = "Have the security officer reset the PIN; then probe."
            return fail(check, "not tried: few tries of the PIN are left, or none", mend)
        wrapper = await open_backend(uri, allow_missing=True)
        try:
            await prove(wrapper, records)
            return ok(
                check,
                f"wraps and unwraps: version {wrapper.current_version}, {wrapper.mechanism}",
            )
        finally:
            await wrapper.close()
    except HsmError as error:
        return fail(check, str(error), _MEND)


async def _would_spend_a_try(uri: str) -> bool:
    if uri.partition(":")[0].lower() != SCHEME:
        return False
    return (await inspect_token(parse_pkcs11_uri(uri))).keys is None
