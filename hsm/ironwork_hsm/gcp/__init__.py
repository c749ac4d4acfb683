"""Master keys in Google Cloud KMS (the extra `[gcp]`). Importing this loads Google's libraries."""

from ironwork_hsm.gcp.backend import GcpKmsKeyWrapper, open_gcp_kms

__all__ = ["GcpKmsKeyWrapper", "open_gcp_kms"]
