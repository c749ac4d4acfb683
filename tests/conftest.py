"""The fixtures that every kind of test shares; each starts a real part and stops it."""

import importlib.util

# Each module is one real part: a SoftHSM token, a certificate authority, the Anthropic simulator,
# a whole server.
pytest_plugins = [
    name
    for name in ("fixtures.softhsm", "fixtures.pki", "fixtures.simulator", "fixtures.server")
    if importlib.util.find_spec(name)
]
