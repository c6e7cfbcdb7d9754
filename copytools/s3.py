"""Amazon's S3, or what AWS_ENDPOINT_URL names: s3://BUCKET/KEY, with the keys that boto3 finds."""

from __future__ import annotations

from copytools.buckets import BucketTool


class Tool(BucketTool):
    """Keys by its options, else as boto3 looks for them: environment, ~/.aws, the role of the machine."""
