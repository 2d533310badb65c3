"""A store in an S3 bucket, or in any server that speaks S3 and honours conditional writes."""

from __future__ import annotations

import errno
import io
import re
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, cast

from perennial.errors import InputError
from perennial.store.atomic_file import PendingFile
from perennial.store.base import ObjectInfo, Objects, Store, markers_first
from perennial.store.keys import pending_name, valid_key, valid_prefix
from perennial.store.s3_client import arrow_options, connection, plain_errors, set_defaults
from perennial.store.schemes import STORES, parse_bucket_url

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from s3fs import S3FileSystem

_CREATE_ATTEMPTS = 5
_REMOVALS_AT_ONCE = 8
_READ_BLOCK_BYTES = 8 << 20
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENVIRONMENT = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to ones that may list the "
    "bucket"
)
_WRITABLE = "give these credentials the right to put, read and delete objects below this url"


@dataclass(frozen=True)
class S3Store(Store):
    """A store in a bucket; `url` is s3://bucket or s3://bucket/prefix."""

    is_local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        set_defaults()

    def __reduce__(self) -> tuple[type[S3Store], tuple[str]]:
        # Through __init__, so that the defaults are set in the process that unpickles, too.
        return S3Store, (self.url,)

    def read(self, key: str) -> bytes:
        with plain_errors(self._named(key)):
            return cast(bytes, self._fs.cat_file(self._path(key)))

    def write(self, key: str, data: bytes) -> None:
        with plain_errors(self._named(key)):
            self._fs.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        # A repeated request may find the object that its own first attempt created. The writer's
        # mark distinguishes that from a lost race, even when both wrote the same bytes.
        valid_key(key)
        writer = uuid.uuid4().hex
        for _ in range(_CREATE_ATTEMPTS):
            try:
                self._call(
                    "put_object", key, Body=data, IfNoneMatch="*", Metadata={"writer": writer}
                )
                return True
            except PermissionError:
                raise
            except OSError as error:
                failure = error
                holder = self._writer(key)
            if holder is not None:
                return holder == writer
            if not _refused_by_condition(failure):
                raise failure
            # Refused although the key is free: the other writer failed, or its object was removed.
        raise failure

    def exists(self, key: str) -> bool:
        try:
            self.info(key)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Objects:
        # Without the empty objects by which some clients mark a folder, the store's own included.
        return [info for info in self._objects(prefix) if info.key.rpartition("/")[2]]

    def info(self, key: str) -> ObjectInfo:
        answer = self._call("head_object", valid_key(key))
        return _info(key, answer["ContentLength"], answer)

    def open(self, key: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        path = self._path(key)
        if mode == "wb":
            descriptor, name = tempfile.mkstemp(prefix="perennial-")
            raw = io.FileIO(descriptor, "wb")
            return PendingFile(raw, Path(name), lambda pending: self.upload(pending, key))
        with plain_errors(self._named(key)):
            source = self._fs.open(path, "rb", block_size=_READ_BLOCK_BYTES)
            if source.details["type"] == "directory":
                raise FileNotFoundError
            return cast(BinaryIO, io.BufferedReader(source, 1 << 20))

    def upload(self, local: Path, key: str) -> None:
        path = self._path(key)
        if not local.is_file():  # s3fs would ignore a folder without an error
            raise FileNotFoundError(errno.ENOENT, "no such file", str(local))
        with plain_errors(self._named(key)):
            self._fs.put_file(str(local), path)

    def download(self, key: str, local: Path) -> None:
        before = self.info(key)
        local.parent.mkdir(parents=True, exist_ok=True)
        pending = local.with_name(pending_name())
        try:
            with plain_errors(self._named(key)):
                self._fs.get_file(self._path(key), str(pending))
            # A large object is read in parts, which must all be of one version.
            if self.info(key) != before or pending.stat().st_size != before.size_bytes:
                raise OSError(f"{self._named(key)} changed while it was read")
            pending.replace(local)
        finally:
            pending.unlink(missing_ok=True)

    def remove(self, key_or_prefix: str) -> None:
        key = valid_key(key_or_prefix)
        keys = [key, *(info.key for info in self._objects(key))]
        keys.sort(key=markers_first)
        markers = [key for key in keys if not markers_first(key)[0]]
        with ThreadPoolExecutor(_REMOVALS_AT_ONCE) as pool:
            # One request each: servers other than AWS differ on the bulk request.
            for group in (markers, keys[len(markers) :]):
                list(pool.map(lambda key: self._call("delete_object", key), group))

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import S3FileSystem

        return S3FileSystem(**arrow_options()), self.url.removeprefix("s3://")

    def check(self) -> None:
        try:
            self._objects("", limit=1)
        except FileNotFoundError:
            bucket = self._place()[0]
            raise InputError(
                "store",
                self.url,
                f"bucket {bucket!r} does not exist",
                "make the bucket or correct the url",
                code="bucket-missing",
            ) from None
        except PermissionError as error:
            raise InputError(
                "store",
                self.url,
                f"the credentials were refused ({_reason(error)})",
                _CREDENTIALS,
                code="store-credentials",
            ) from error
        except OSError as error:
            raise InputError(
                "store",
                self.url,
                f"cannot be reached ({_reason(error)})",
                "set AWS_ENDPOINT_URL and AWS_DEFAULT_REGION to those of the server",
                code="store-unreachable",
            ) from error
        try:
            sound = self._creates_once()
        except OSError as error:
            raise InputError(
                "store",
                self.url,
                f"cannot be written ({_reason(error)})",
                _WRITABLE,
                code="store-not-writable",
            ) from error
        if not sound:
            raise InputError(
                "store",
                self.url,
                "the server ignores If-None-Match, so two writers could both win",
                "use a server that honours conditional writes",
                code="store-without-exclusive-create",
            )

    @property
    def _fs(self) -> S3FileSystem:
        return connection()

    def _place(self) -> tuple[str, str]:
        """Return the bucket, and the prefix of every key with its slash, or ""."""
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        return bucket, f"{prefix}/" if prefix else ""

    def _named(self, key: str) -> str:
        return f"{self.url}/{key}"

    def _path(self, key: str) -> str:
        return "".join((self.url.removeprefix("s3://"), "/", valid_key(key)))

    def _call(self, method: str, key: str, **arguments: Any) -> dict[str, Any]:
        bucket, prefix = self._place()
        with plain_errors(self._named(key)):
            answer = self._fs.call_s3(method, Bucket=bucket, Key=prefix + key, **arguments)
        return cast(dict[str, Any], answer)

    def _writer(self, key: str) -> str | None:
        """Return the mark that `create` left on an object; None when there is no object."""
        try:
            answer = self._call("head_object", key)
        except FileNotFoundError:
            return None
        return cast(str, answer["Metadata"].get("writer", ""))

    def _objects(self, prefix: str, limit: int | None = None) -> Objects:
        """Return objects below `prefix` in key order, with folder markers (keys that end in /)."""
        bucket, base = self._place()
        prefix = valid_prefix(prefix)
        request: dict[str, Any] = {
            "Bucket": bucket,
            "Prefix": f"{base}{prefix}/" if prefix else base,
        }
        if limit:
            request["MaxKeys"] = limit
        objects: Objects = []
        while True:
            with plain_errors(self._named(prefix)):
                page = self._fs.call_s3("list_objects_v2", **request)
            for entry in page.get("Contents", ()):
                objects.append(_info(entry["Key"].removeprefix(base), entry["Size"], entry))
            if limit or not page.get("IsTruncated"):
                return sorted(objects, key=lambda info: info.key)
            request["ContinuationToken"] = page["NextContinuationToken"]


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
    response = getattr(error.__cause__, "response", {})
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412)


def _reason(error: OSError) -> str:
    """Return the server's error code, or the error's text on one line."""
    response = getattr(error.__cause__, "response", {})
    return response.get("Error", {}).get("Code") or " ".join(str(error).split())
