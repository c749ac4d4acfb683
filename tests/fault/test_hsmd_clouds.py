"""A cloud's KMS that fails under load, behind the HSM process: every call ends with a typed reason,
health tells it, and service is back within 10 s of the cloud.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from fixtures.cloud_faults import CLOUDS, DEADLINE_S, Cloud, CloudSite, cloud_site
from fixtures.clouds import Clouds
from fixtures.hsm_faults import Response
from fixtures.hsmd import MakeHsmd
from fixtures.server import StartService
from fixtures.softhsm import SharedToken

BUSY, UNAVAILABLE = "MASTER_KEY_BUSY", "MASTER_KEY_UNAVAILABLE"


# One of the clouds in every run, both in the long one; the contract's suite has both.
@pytest.fixture(params=["aws", pytest.param("gcp", marks=pytest.mark.slow)])
async def site(
    request: pytest.FixtureRequest,
    clouds: Clouds,
    start_service: StartService,
    make_hsmd: MakeHsmd,
    shared_token: SharedToken,
) -> AsyncIterator[CloudSite]:
    cloud = CLOUDS[request.param](clouds)
    async with cloud_site(cloud, clouds, start_service, make_hsmd, shared_token) as made:
        yield made


def longer_than_a_deadline() -> Callable[[], bool]:
    """What says whether a call that is under way now may still not have ended."""
    clock = asyncio.get_running_loop().time
    ends = clock() + DEADLINE_S * 1.2
    return lambda: clock() < ends


async def test_a_kms_that_throttles(site: CloudSite) -> None:
    """Calls are told that the master key is busy, for longer than the deadline of any; the key is
    sound, so health stays, and the device's process is not replaced for it.
    """
    site.cloud.throttle()
    await site.load.fails(BUSY)
    waiting = longer_than_a_deadline()
    while waiting():
        await site.load.fails_for_good()
    assert site.hsmd.status()["healthy"] is True
    site.cloud.heal()
    await site.load.is_back()
    # On a machine that is slow a call may end before the cloud has said it three times.
    assert BUSY in site.load.causes <= {BUSY, UNAVAILABLE}
    assert site.starts() == 1


FAULTS: dict[str, tuple[Callable[[Cloud], None], Callable[[Cloud], None]]] = {
    "denied": (lambda cloud: cloud.deny(), lambda cloud: cloud.heal()),
    "down": (lambda cloud: cloud.break_down(), lambda cloud: cloud.heal()),
    "silent": (lambda cloud: cloud.hang(), lambda cloud: cloud.heal()),
    "disabled": (lambda cloud: cloud.disable(), lambda cloud: cloud.enable()),
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=() if fault in ("denied", "silent") else pytest.mark.slow)
        for fault in FAULTS
    ],
)
async def test_a_kms_that_fails(site: CloudSite, fault: str) -> None:
    """Where the KMS denies the key, is down or silent, or the key is disabled, calls are
    Unavailable and health says so; with the cloud back the service is back.
    """
    begin, end = FAULTS[fault]
    begin(site.cloud)
    await site.load.fails(UNAVAILABLE)
    await site.health.becomes(Response.NOT_SERVING)
    await site.load.fails_for_good()
    end(site.cloud)
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.load.causes == {UNAVAILABLE}


@pytest.mark.slow
async def test_a_kms_that_is_slow(site: CloudSite) -> None:
    """A KMS that takes its time is not sick: calls wait for it, and the device's process is not
    replaced however long that lasts.
    """
    site.cloud.slow()
    waiting = longer_than_a_deadline()
    while waiting():
        await site.load.completes(1)
    assert site.hsmd.status()["healthy"] is True
    site.cloud.heal()
    await site.load.is_back()
    assert site.starts() == 1


async def test_an_answer_that_never_comes(site: CloudSite) -> None:
    """One request that the KMS leaves unanswered is asked again within its deadline: no call fails
    for it, and the device's process is not replaced.
    """
    site.cloud.hang_once()
    waiting = longer_than_a_deadline()
    while waiting():
        await site.load.completes(5)
    assert site.load.causes == set()
    assert site.starts() == 1
