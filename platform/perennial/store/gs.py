"""A store in a bucket of Google Cloud Storage, through gcsfs (`pip install 'perennial[gs]'`)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, cast

from perennial.errors import InputError
from perennial.store.base import ObjectInfo, Objects
from perennial.store.bucket import BucketStore, Remedies
from perennial.store.keys import valid_key
from perennial.store.refusals import with_remedy
from perennial.store.schemes import STORES, parse_bucket_url

if TYPE_CHECKING:
    from gcsfs.core import GCSFileSystem
    from pyarrow.fs import FileSystem

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_CREDENTIALS = (
    "set GOOGLE_APPLICATION_CREDENTIALS to the file of an account that may list the bucket, or run "
    "`gcloud auth application-default login`"
)

_ADVICE = (
    (
        r"cloudkms|cryptoKey",
        "give the bucket's service account the right to use its key (Cloud KMS CryptoKey "
        "Encrypter/Decrypter)",
    ),
    (
        r"short-lived token|Token used too (early|late)|reasonable timeframe",
        "set this machine's clock by a time server: its requests seem to be of another time",
    ),
    (
        r"Reauthentication|invalid_grant|expired",
        "sign in again: `gcloud auth application-default login`",
    ),
    (r"billing", "open the billing account of the bucket's project"),
    (r"quota|InsufficientStorage", "raise the project's quota, and repeat the command"),
    (r"rateLimitExceeded|SlowDown", "repeat the command when the service is less busy"),
    (r"bucket does not exist", "make the bucket or correct the url"),
)


@dataclass(frozen=True)
class GoogleStore(BucketStore):
    """A store in a bucket; `url` is gs://bucket or gs://bucket/prefix."""

    remedies: ClassVar[Remedies] = Remedies(
        credentials=_CREDENTIALS,
        unreachable="make storage.googleapis.com reachable; STORAGE_EMULATOR_HOST, where it is "
        "set, names another server",
        condition="ifGenerationMatch",
    )

    @property
    def filesystem(self) -> GCSFileSystem:
        # The process id, because a client does not survive a fork.
        return _connect(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST", ""))

    def errors(self, name: str) -> AbstractContextManager[None]:
        return _plain_errors(name)

    def create_marked(self, key: str, data: bytes, writer: str) -> None:
        with self.errors(self.name_of(key)):
            # mode="create" is ifGenerationMatch=0, a condition that the server tests.
            self.filesystem.pipe_file(
                self.path_of(key), data, metadata={"writer": writer}, mode="create"
            )

    def writer_of(self, key: str) -> str | None:
        try:
            answer = self._describe_object(key)
        except FileNotFoundError:
            return None
        return cast(str, answer.get("metadata", {}).get("writer", ""))

    def info(self, key: str) -> ObjectInfo:
        return _info(key, self._describe_object(valid_key(key)))

    def objects(self, prefix: str, limit: int | None = None, after: str = "") -> Objects:
        # The requests themselves: gcsfs's listings add a folder for every prefix.
        bucket, base = self.place()
        request: dict[str, Any] = {"prefix": self.folder_of(prefix), "maxResults": limit}
        if after:
            request["startOffset"] = base + after  # the first name that it returns
        objects: Objects = []
        while True:
            with self.errors(self.name_of(prefix)):
                page = self.filesystem.call("GET", "b/{}/o", bucket, json_out=True, **request)
            for entry in page.get("items", ()):
                if entry["name"] != base + after:
                    objects.append(_info(entry["name"].removeprefix(base), entry))
            if limit or not page.get("nextPageToken"):
                return sorted(objects, key=lambda info: info.key)
            request["pageToken"] = page["nextPageToken"]

    def delete(self, key: str) -> None:
        bucket, prefix = self.place()
        try:
            with self.errors(self.name_of(key)):
                self.filesystem.call("DELETE", "b/{}/o/{}", bucket, prefix + key)
        except FileNotFoundError:
            pass

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.filesystem)), self.url.removeprefix("gs://")

    def _describe_object(self, key: str) -> dict[str, Any]:
        bucket, prefix = self.place()
        with self.errors(self.name_of(key)):
            answer = self.filesystem.call("GET", "b/{}/o/{}", bucket, prefix + key, json_out=True)
        return cast(dict[str, Any], answer)


@STORES.register("gs")
def open_google_store(url: str) -> GoogleStore:
    """Open the store at gs://bucket or gs://bucket/prefix.

    Raises:
        InputError: the url has another form, or gcsfs is not installed.
    """
    if find_spec("gcsfs") is None:
        raise InputError(
            "store",
            url,
            "gs:// needs the package gcsfs, which is not installed",
            "run pip install 'perennial[gs]' wherever the run runs",
            code="store-package-missing",
        )
    return GoogleStore(parse_bucket_url(url, _BUCKET, _CREDENTIALS))


@cache
def _connect(_pid: int, _emulator: str) -> GCSFileSystem:
    # From its module: the package's own name is an experimental class for zonal buckets.
    from gcsfs.core import GCSFileSystem

    return GCSFileSystem(
        token="anon" if _emulator else None,
        skip_instance_cache=True,
        use_listings_cache=False,  # other processes write
        requests_timeout=60,
    )


@contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    """Convert errors of gcsfs, aiohttp and google.auth into OSErrors that name `url`."""
    try:
        with _translated(url):
            yield
    except OSError as error:
        with_remedy(error, _ADVICE)
        raise


@contextmanager
def _translated(url: str) -> Iterator[None]:
    from aiohttp import ClientError
    from gcsfs.retry import ChecksumError, HttpError
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from error
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, "the object exists", url) from error
    except (TransportError, ClientError, TimeoutError, ChecksumError) as error:
        raise ConnectionError(f"{url}: {str(error) or type(error).__name__}") from error
    except GoogleAuthError as error:
        raise PermissionError(errno.EACCES, str(error), url) from error
    except HttpError as error:
        if error.code in (401, 403):
            raise PermissionError(errno.EACCES, str(error), url) from error
        if error.code == 507:
            raise OSError(errno.ENOSPC, str(error), url) from error
        raise ConnectionError(f"{url}: {error}") from error
    except ValueError as error:
        # gcsfs raises it for a request that the server calls invalid.
        raise OSError(errno.EIO, str(error), url) from error
    except OSError as error:
        # gcsfs has no type of its own for 403.
        if str(error).startswith("Forbidden"):
            raise PermissionError(errno.EACCES, str(error), url) from error
        if error.errno is None:  # no error of this machine's files, but of requests
            raise ConnectionError(f"{url}: {error}") from error
        raise


def _info(key: str, answer: dict[str, Any]) -> ObjectInfo:
    modified = datetime.fromisoformat(answer["updated"]).astimezone(UTC)
    # The generation changes with the content alone, the service's etag with metadata too.
    return ObjectInfo(key, int(answer["size"]), answer["generation"], modified)
