"""Master keys in AWS KMS, by boto3 (the extra `[aws]`). Importing this loads that library."""

from ironwork_hsm.aws.backend import AwsKmsKeyWrapper, open_aws_kms

__all__ = ["AwsKmsKeyWrapper", "open_aws_kms"]
