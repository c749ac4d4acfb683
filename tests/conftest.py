"""The fixtures that every kind of test shares; each starts a real part and stops it."""

# Each module is one real part: a SoftHSM token, a certificate authority, the Anthropic simulator,
# a whole server.
_PARTS = (
    "softhsm",
    "signing",
    "witness",
    "verifiers",
    "aws",
    "gcp",
    "models",
    "nss",
    "pki",
    "simulator",
    "apart",
    "migrated",
    "server",
    "scene",
    "production",
    "doctor",
    "hsmd",
    "clouds",
    "opencryptoki",
    "hsm_faults",
    "watching",
    "spied",
)
pytest_plugins = [f"fixtures.{part}" for part in _PARTS]
