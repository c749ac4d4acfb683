"""boto3's client for KMS as we run it: our retries, our time limits, one place to connect to."""

import logging
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import boto3.session
from botocore.config import Config

from ironwork_hsm.aws.errors import is_passing
from ironwork_hsm.interface import BackendOptions, ConfigurationError

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

Result = TypeVar("Result")

ATTEMPTS = 3
# Seconds before a second and a third attempt; half of it is chance (AWS's "equal jitter").
_PAUSES_S = (0.1, 0.4)
_CONNECT_S = 1.0
# A hung answer leaves time for one more attempt within the deadline.
_LEAST_READ_S = 1.0
# boto3 would send data keys to whatever these name.
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS")


def make_client(
    region: str | None, options: BackendOptions, *, endpoint_url: str | None
) -> "KMSClient":
    """A client with the credentials of AWS's default chain. Blocks. Raises botocore's errors, and
    ConfigurationError where the environment names an endpoint.

    endpoint_url: for tests only. The environment's proxy is not used.
    """
    _quieten()
    if endpoint_url is None:
        for name in _ENDPOINTS:
            if os.environ.get(name):
                raise ConfigurationError(
                    f"{name} is set: data keys would go to the place that it names. Unset it; AWS "
                    "KMS is reached at its region's own endpoint."
                )
    return boto3.session.Session().client(
        "kms",
        region_name=region,
        endpoint_url=endpoint_url,
        config=Config(
            connect_timeout=_CONNECT_S,
            read_timeout=max(_LEAST_READ_S, options.deadline_s / 2),
            # Ours, below, which know the call's deadline.
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=options.lanes,
            # Empty, not absent: no proxy from the environment.
            proxies={},
            # An endpoint in AWS's configuration file.
            ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # not in the stubs
        ),
    )


def credentials_last() -> bool:
    """Whether AWS's default chain finds an access key that does not end by itself, instead of a
    role's. Blocks. Raises botocore's errors.
    """
    found = boto3.session.Session().get_credentials()
    return found is not None and found.get_frozen_credentials().token is None


def persist(function: Callable[[], Result], *, until: float) -> Result:
    """Call function at most ATTEMPTS times while its failure is passing and `until` (of
    time.monotonic) is not reached. Blocks. Raises what the last call raised.
    """
    for pause in _PAUSES_S:
        try:
            return function()
        except Exception as error:
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  jitter, not a secret
            if not is_passing(error) or time.monotonic() + wait >= until:
                raise
        time.sleep(wait)
    return function()


def _quieten() -> None:
    """botocore logs requests and answers at DEBUG, and with them data keys."""
    for name in ("botocore", "boto3", "urllib3"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)
