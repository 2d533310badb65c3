"""The connection to an S3 server, configured by the environment and the AWS files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from s3fs import S3FileSystem

_DEFAULTS = {
    # Servers other than AWS refuse or corrupt uploads with trailing checksums.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    # 5xx answers, throttling and lost connections are repeated with growing random waits.
    "AWS_RETRY_MODE": "standard",
    "AWS_MAX_ATTEMPTS": "5",
}
_AWS_HOST = re.compile(r"s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")


class Endpoint(NamedTuple):
    """Address of the server: `url` is None for AWS, `region` None when nothing names one."""

    url: str | None
    region: str | None
    addressing: str


def set_defaults() -> None:
    """Set variables that S3 clients of this process read, where they are not set."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def connection() -> S3FileSystem:
    """Return the S3 client of this process and AWS environment; threads may share it."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    # The process id, because a client does not survive a fork.
    return _connect(os.getpid(), environment)


@cache
def _connect(_pid: int, _environment: tuple[tuple[str, str], ...]) -> S3FileSystem:
    from s3fs import S3FileSystem

    endpoint = configured_endpoint()
    filesystem = S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,  # other processes write
        max_concurrency=4,
        config_kwargs={
            "connect_timeout": 5,
            "read_timeout": 30,
            "max_pool_connections": 32,
            "s3": {"addressing_style": endpoint.addressing},
        },
    )
    filesystem.retries = 3  # besides botocore's own retries: for bodies that end early
    filesystem.connect()
    return filesystem


def configured_endpoint() -> Endpoint:
    """Return the endpoint that botocore reads from the environment and the AWS files."""
    from botocore.session import Session

    settings = Session().create_client("s3").meta
    host = urlsplit(settings.endpoint_url).hostname or ""
    url = None if _AWS_HOST.fullmatch(host) else settings.endpoint_url
    region = None if settings.region_name == "aws-global" else settings.region_name
    chosen = (settings.config.s3 or {}).get("addressing_style")
    # Private servers rarely have a DNS name for every bucket.
    return Endpoint(url, region, chosen or ("path" if url else "auto"))


def arrow_options() -> dict[str, Any]:
    """Return arguments for pyarrow's S3FileSystem; it reads credentials like botocore."""
    from pyarrow.fs import AwsStandardS3RetryStrategy

    endpoint = configured_endpoint()
    options: dict[str, Any] = {
        "force_virtual_addressing": endpoint.addressing == "virtual",
        "retry_strategy": AwsStandardS3RetryStrategy(int(os.environ["AWS_MAX_ATTEMPTS"])),
    }
    if endpoint.region:
        options["region"] = endpoint.region
    if endpoint.url:
        parts = urlsplit(endpoint.url)
        options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    return options


@contextmanager
def plain_errors(url: str) -> Iterator[None]:
    """Convert errors of botocore, aiohttp and s3fs into OSErrors that name `url`."""
    from botocore.exceptions import (
        BotoCoreError,
        CredentialRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
    )
    from s3fs.core import S3_RETRYABLE_ERRORS

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from error
    except (CredentialRetrievalError, NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(errno.EACCES, str(error), url) from error
    except (BotoCoreError, *S3_RETRYABLE_ERRORS) as error:
        raise ConnectionError(f"{url}: {error}") from error
