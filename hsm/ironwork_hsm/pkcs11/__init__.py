"""Master keys in a PKCS#11 token, by python-pkcs11. Importing this loads that library."""

from ironwork_hsm.pkcs11.backend import Pkcs11KeyWrapper, open_pkcs11

__all__ = ["Pkcs11KeyWrapper", "open_pkcs11"]
