"""An HSM whose module hangs, under load: calls end at their deadline, and nothing else stops."""

from fixtures.hsm_faults import PATIENCE_S, Response, Site
from fixtures.server import PARENT
from ironwork.keys.v1 import keys_pb2

UNAVAILABLE = "MASTER_KEY_UNAVAILABLE"


async def test_a_module_that_hangs(site: Site) -> None:
    """Calls become Unavailable, health says so, what needs no HSM is served meanwhile, and when the
    module answers again so does the service.
    """
    site.device.set(hang=1)
    await site.device.until("hanging", lambda count: count > 0)
    # The loop is not in the module: while calls hang there, others are answered.
    listed = await site.service.keys().ListMasked(
        keys_pb2.ListMaskedRequest(parent=PARENT), timeout=PATIENCE_S
    )
    assert len(listed.keys) == 1
    assert not site.load.causes
    assert site.device.get("hanging") > 0
    await site.load.fails(UNAVAILABLE)
    await site.health.becomes(Response.NOT_SERVING)
    await site.load.fails_for_good()
    site.device.set(hang=0)
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.load.causes == {UNAVAILABLE}
    if site.shape == "pkcs11":
        # The same module went on: it cannot be started anew with calls inside.
        assert site.device.get("initialized") == 1
    else:
        # A child that hangs is killed, and another is in its place.
        assert site.device.get("initialized") > 1


async def test_a_module_that_does_not_initialise_again(site: Site) -> None:
    """A module that is started anew fails while C_Initialize does; then service resumes."""
    site.device.set(initialize=0x30, decrypt=0x30)
    await site.health.becomes(Response.NOT_SERVING)
    await site.load.fails_for_good()
    site.device.set(initialize=0, decrypt=0)
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.load.causes == {UNAVAILABLE}
