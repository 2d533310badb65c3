"""A store in an S3 bucket, or in any server that speaks S3 and honours conditional writes."""

from __future__ import annotations

import errno
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, ClassVar, cast

from perennial.store.base import ObjectInfo, Objects
from perennial.store.bucket import BucketStore, Remedies
from perennial.store.keys import valid_key
from perennial.store.s3_client import (
    answer_of,
    arrow_options,
    connection,
    plain_errors,
    set_defaults,
)
from perennial.store.schemes import STORES, parse_bucket_url

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from s3fs import S3FileSystem

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENVIRONMENT = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"


@dataclass(frozen=True)
class S3Store(BucketStore):
    """A store in a bucket; `url` is s3://bucket or s3://bucket/prefix."""

    remedies: ClassVar[Remedies] = Remedies(
        credentials="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to ones that "
        "may list the bucket",
        unreachable="set AWS_ENDPOINT_URL and AWS_DEFAULT_REGION to those of the server",
        condition="If-None-Match",
    )

    def __post_init__(self) -> None:
        set_defaults()

    def __reduce__(self) -> tuple[type[S3Store], tuple[str]]:
        # Through __init__, so that the defaults are set in the process that unpickles, too.
        return S3Store, (self.url,)

    @property
    def filesystem(self) -> S3FileSystem:
        return connection()

    def errors(self, name: str) -> AbstractContextManager[None]:
        return plain_errors(name)

    def create_marked(self, key: str, data: bytes, writer: str) -> None:
        try:
            self._call("put_object", key, Body=data, IfNoneMatch="*", Metadata={"writer": writer})
        except PermissionError:
            raise
        except OSError as error:
            if _refused_by_condition(error):
                raise FileExistsError(errno.EEXIST, "exists", self.name_of(key)) from error
            raise

    def writer_of(self, key: str) -> str | None:
        try:
            answer = self._call("head_object", key)
        except FileNotFoundError:
            return None
        return cast(str, answer["Metadata"].get("writer", ""))

    def info(self, key: str) -> ObjectInfo:
        answer = self._call("head_object", valid_key(key))
        return _info(key, answer["ContentLength"], answer)

    def objects(self, prefix: str, limit: int | None = None, after: str = "") -> Objects:
        bucket, base = self.place()
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": self.folder_of(prefix)}
        if after:
            request["StartAfter"] = base + after
        if limit:
            request["MaxKeys"] = limit
        objects: Objects = []
        while True:
            with plain_errors(self.name_of(prefix)):
                page = self.filesystem.call_s3("list_objects_v2", **request)
            for entry in page.get("Contents", ()):
                objects.append(_info(entry["Key"].removeprefix(base), entry["Size"], entry))
            if limit or not page.get("IsTruncated"):
                return sorted(objects, key=lambda info: info.key)
            request["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        self._call("delete_object", key)

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import S3FileSystem

        return S3FileSystem(**arrow_options()), self.url.removeprefix("s3://")

    def _call(self, method: str, key: str, **arguments: Any) -> dict[str, Any]:
        bucket, prefix = self.place()
        with plain_errors(self.name_of(key)):
            answer = self.filesystem.call_s3(method, Bucket=bucket, Key=prefix + key, **arguments)
        return cast(dict[str, Any], answer)


@STORES.register("s3")
def open_s3_store(url: str) -> S3Store:
    """Open the store at s3://bucket or s3://bucket/prefix."""
    return S3Store(parse_bucket_url(url, _BUCKET, _ENVIRONMENT))


def _info(key: str, size_bytes: int, answer: dict[str, Any]) -> ObjectInfo:
    # A listing has milliseconds, the answer for a single object has seconds.
    modified = answer["LastModified"].astimezone(UTC).replace(microsecond=0)
    return ObjectInfo(key, size_bytes, answer["ETag"].strip('"'), modified)


def _refused_by_condition(error: OSError) -> bool:
    """Return whether the server answered 412, or 409 while another writer is not finished."""
    status = answer_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in (409, 412)
