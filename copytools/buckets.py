"""Objects in buckets by the S3 protocol, with boto3: what the tools s3 and objectstore share. Addresses: s3://BUCKET/KEY.

An upload carries its MD5, which the storage compares before it has the object. Above LARGEST_PUT it goes in parts: each carries
its own, and the storage's word about the whole, made of those of the parts, is compared.
"""

from __future__ import annotations

import base64
import configparser
import errno
import functools
import hashlib
import importlib.util
import re
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from copytools.base import Checksums, Deadline, Option, Stored, shown
from copytools.checksum import BLOCK
from copytools.failures import BY_STATUS, CORRUPTED, OVERLOADED, UNREACHABLE
from copytools.remote import Outgoing, RemoteTool, Watched, in_bucket, private, within
from protocol.errors import PilotageError
from protocol.redaction import one_line, redact
from protocol.values import Bounds, Places, Type, as_text, parse

LARGEST_PUT = 5 * 1024**3
"""Bytes that S3 takes in one piece."""
PART = 64 * 1024**2
MOST_PARTS = 10_000

_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_CODES = {
    "BadDigest": CORRUPTED, "InvalidDigest": CORRUPTED, "XAmzContentSHA256Mismatch": CORRUPTED, "SlowDown": OVERLOADED,
    "KeyTooLongError": errno.ENAMETOOLONG, "QuotaExceeded": errno.EDQUOT, "RequestTimeout": UNREACHABLE,
}  # fmt: skip
"""What the storage calls it is surer than the status."""


class BucketTool(RemoteTool):
    """Not a tool by itself: s3 and objectstore say where storage and keys are found."""

    schemes = ("s3",)
    told_checksum = "md5"

    OPTIONS = {
        "endpoint": Option(Type.TEXT, "", "address of the storage, as https://s3.example:9000"),
        "credentials_file": Option(Type.PATH, "", "keys as in ~/.aws/credentials (mode 0600)"),
        "profile": Option(Type.NAME, "default", "section of credentials_file"),
        "region": Option(Type.NAME, "us-east-1", "where the storage has any"),
        "path_style": Option(
            Type.FLAG, "yes", "the bucket in the path of requests, not in the name of the host"
        ),
        "ca_file": Option(
            Type.PATH, "", "certificate authorities of the storage; default: those of botocore"
        ),
        "connect_seconds": Option(
            Type.INTEGER, "5", "how long the storage may take to be reached", Bounds(1, 600)
        ),
        "silent_seconds": Option(
            Type.INTEGER, "60", "how long the storage may say nothing in the middle", Bounds(1, 3600)
        ),
    }

    def __init__(self, options: Mapping[str, object]) -> None:
        super().__init__(options)
        if self.options["endpoint"]:
            try:
                parse(Type.URL, as_text(self.options["endpoint"]), Bounds(), Places(None, None))
            except ValueError as error:
                raise PilotageError("BAD_SETTINGS", f"[copytool:{self.name}] endpoint {error}") from None

    def unusable(self) -> Optional[str]:
        return (
            None
            if importlib.util.find_spec("boto3")
            else "Python package boto3 is missing: pip install boto3"
        )

    # -- the four verbs -----------------------------------------------------------------------------------------------------

    def get(self, source: str, to: Path, deadline: Deadline) -> None:
        bucket, key = in_bucket(source)

        # Made and closed here: whoever is left alone must not make it when nobody wants it any more.
        with Watched(to, "xb", deadline) as file:

            def work() -> None:
                with _translated(deadline):
                    found = self._client().get_object(Bucket=bucket, Key=key)
                    with closing(found["Body"]) as body:
                        for block in body.iter_chunks(BLOCK):
                            file.write(block)

            within(deadline, work)

    def put(self, file: Outgoing, target: str, deadline: Deadline) -> Optional[Stored]:
        bucket, key = in_bucket(target)
        place = {"Bucket": bucket, "Key": key}
        send = self._put_in_parts if file.size > LARGEST_PUT else self._put_whole

        def work() -> Optional[Stored]:
            with _translated(deadline):
                return send(file, place, deadline)

        return within(deadline, work)

    def stored(self, url: str, deadline: Deadline) -> Optional[Stored]:
        bucket, key = in_bucket(url)

        def work() -> Stored:
            with _translated(deadline):
                found = self._client().head_object(Bucket=bucket, Key=key)
                return Stored(int(found["ContentLength"]), _md5_of(found))

        try:
            return within(deadline, work)
        except FileNotFoundError:
            return None

    def remove(self, url: str, deadline: Deadline) -> None:
        bucket, key = in_bucket(url)

        def work() -> None:
            with _translated(deadline):
                self._client().delete_object(Bucket=bucket, Key=key)

        within(deadline, work)

    # -- uploads ------------------------------------------------------------------------------------------------------------

    def _put_whole(self, file: Outgoing, place: Mapping[str, str], deadline: Deadline) -> Optional[Stored]:
        md5 = file.checksums["md5"]
        with Watched(file.path, "rb", deadline) as body:
            done = self._client().put_object(
                **place,
                Body=body,
                ContentLength=file.size,
                ContentMD5=_base64(bytes.fromhex(md5)),
                IfNoneMatch="*",
            )
        told = _md5_of(done)
        return Stored(file.size, told) if told == {"md5": md5} else None

    def _put_in_parts(self, file: Outgoing, place: Mapping[str, str], deadline: Deadline) -> Optional[Stored]:
        client, size = self._client(), max(PART, -(-file.size // MOST_PARTS))
        upload = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}
        parts: List[Dict[str, Any]] = []
        digests = b""
        try:
            with Watched(file.path, "rb", deadline) as body:
                for number in range(1, -(-file.size // size) + 1):
                    data = body.read(size)
                    digest = hashlib.md5(data, usedforsecurity=False).digest()
                    sent = client.upload_part(
                        **upload, PartNumber=number, Body=data, ContentMD5=_base64(digest)
                    )
                    parts.append({"PartNumber": number, "ETag": sent["ETag"]})
                    digests += digest
            deadline.check()
            done = client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
        except BaseException:
            client.abort_multipart_upload(**upload)
            raise
        whole = hashlib.md5(digests, usedforsecurity=False).hexdigest()
        told = re.fullmatch(r'"?([0-9a-f]{32})-\d+"?', done.get("ETag", ""))
        if told and told[1] != whole and not _is_encrypted(done):
            raise OSError(CORRUPTED, f"{whole} was sent, {told[1]} is stored (MD5 of those of the parts)")
        return None

    # -- the storage ----------------------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        """Of boto3; threads may share it."""
        file = as_text(self.options["credentials_file"])
        keys = _keys_in(file, as_text(self.options["profile"])) if file else ()
        named = ("endpoint", "region", "path_style", "ca_file", "connect_seconds", "silent_seconds")
        return _made_client(keys, *(as_text(self.options[name]) for name in named))


@functools.lru_cache(maxsize=8)
def _made_client(
    keys: Tuple[str, ...],
    endpoint: str,
    region: str,
    path_style: str,
    ca_file: str,
    connect: str,
    silent: str,
) -> Any:
    """Costs some 50 ms. Without keys boto3 finds them as it always does."""
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if path_style == "yes" else "virtual"},
        retries={"total_max_attempts": 1},
        # Its own checksums are known to few storages but Amazon's; Content-MD5 is known to all.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=int(connect),
        read_timeout=int(silent),
        max_pool_connections=64,
    )
    return boto3.session.Session().client(
        "s3", region_name=region, endpoint_url=endpoint or None, verify=ca_file or None, config=config,
        **dict(zip(_KEYS, keys)),
    )  # fmt: skip


def _keys_in(file: str, profile: str) -> Tuple[str, ...]:
    """Read anew each time: keys may be renewed."""
    parser = configparser.RawConfigParser()
    try:
        private(file)
        parser.read_string(Path(file).read_text(encoding="utf-8"))
        found = dict(parser[profile])
    except (OSError, ValueError, KeyError, configparser.Error) as error:
        # Not the words of the error: they may hold the line that is wrong.
        raise PilotageError(
            "NO_S3_CREDENTIALS", f"{shown(file)} [{profile}]: {type(error).__name__}"
        ) from None
    if not all(found.get(name) for name in _KEYS[:2]):
        raise PilotageError("NO_S3_CREDENTIALS", f"{shown(file)} [{profile}] lacks {' or '.join(_KEYS[:2])}")
    return tuple(found[name] for name in _KEYS if found.get(name))


def _md5_of(answer: Mapping[str, Any]) -> Checksums:
    """The ETag, where it is an MD5: not of what came in parts, nor of what the storage has encrypted with a key of its own."""
    told = str(answer.get("ETag", "")).strip('"')
    return {"md5": told} if re.fullmatch("[0-9a-f]{32}", told) and not _is_encrypted(answer) else {}


def _is_encrypted(answer: Mapping[str, Any]) -> bool:
    return "kms" in str(answer.get("ServerSideEncryption", "")) or "SSECustomerAlgorithm" in answer


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


@contextmanager
def _translated(deadline: Deadline) -> Iterator[None]:
    """What boto3 raises, as an OSError or an error of the catalogue."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise _error(error.response, str(error)) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        advice = "set credentials_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise PilotageError("NO_S3_CREDENTIALS", f"{error}; {advice}") from None
    except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
        deadline.check()
        raise OSError(UNREACHABLE, one_line(redact(str(error)))) from None
    except exceptions.BotoCoreError as error:
        raise OSError(errno.EIO, one_line(redact(str(error)))) from None


def _error(response: Mapping[str, Any], said: str) -> Exception:
    code, status = response["Error"].get("Code", ""), response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return PilotageError("S3_BUCKET_MISSING", one_line(redact(said)))
    return OSError(
        _CODES.get(code) or {**BY_STATUS, 409: errno.EEXIST}.get(status, errno.EIO), one_line(redact(said))
    )
