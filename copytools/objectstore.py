"""The object storage of a site, which speaks as S3 does: s3://BUCKET/KEY, with address and keys from the site's settings alone."""

from __future__ import annotations

from typing import Optional

from copytools.buckets import BucketTool


class Tool(BucketTool):
    """Nothing of Amazon's is looked for: a node's AWS_… variables may belong to somebody else."""

    if_named = True

    def unusable(self) -> Optional[str]:
        absent = [name for name in ("endpoint", "credentials_file") if not self.options[name]]
        if absent:
            return f"[copytool:objectstore] lacks {' and '.join(absent)}"
        return super().unusable()
