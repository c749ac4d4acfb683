"""Lets a wrapper find its mechanism, for whoever keeps no record of the trials."""

from ironwork_hsm.interface import ConfigurationError, KeyWrapper, MechanismRefused

# More mechanisms than any backend has.
MAX_TRIALS = 16


async def settle(wrapper: KeyWrapper) -> None:
    """Check until a mechanism has worked. Raises what check raises, but never MechanismRefused."""
    for _ in range(MAX_TRIALS):
        try:
            await wrapper.check()
        except MechanismRefused:
            continue
        return
    raise ConfigurationError(f"{wrapper.name} has no mechanism that its device offers.")
