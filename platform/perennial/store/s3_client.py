"""The connection to an S3 server, configured by the environment and the AWS files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from perennial.store.refusals import with_remedy

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
_FULL = re.compile(r"Quota|StorageFull|InsufficientStorage")
_REFUSED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed")
_CLOCK = "set this machine's clock by a time server: its requests seem to be of another time"
_REMEDIES: Sequence[tuple[str, str]] = (
    (
        r"kms",
        "give these credentials the right to use the bucket's key: kms:GenerateDataKey and "
        "kms:Decrypt",
    ),
    (_FULL.pattern, "free room in the bucket or raise its quota, and repeat the command"),
    (r"^RequestTimeTooSkewed|^RequestExpired|^RequestInTheFuture", _CLOCK),
    (
        r"^ExpiredToken|^InvalidToken|^TokenRefreshRequired|token has expired|Token.*SSO|sso login",
        "renew the session: `aws sso login`, or a new AWS_SESSION_TOKEN with its keys",
    ),
    (
        r"^PermanentRedirect|^AuthorizationHeaderMalformed|^IllegalLocationConstraint|^301"
        r"|region .* is wrong",
        "set AWS_DEFAULT_REGION (and AWS_ENDPOINT_URL, where it is set) to the bucket's region",
    ),
    (
        r"^InvalidAccessKeyId|^SignatureDoesNotMatch|Unable to locate credentials|^Partial cred",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to ones that may list "
        "the bucket",
    ),
    (
        r"^AccessDenied|^403|^AllAccessDisabled",
        "give these credentials the right to list the bucket and to put, read and delete objects",
    ),
    (
        r"Could not connect|Name or service not known",
        "make the server reachable; AWS_ENDPOINT_URL and AWS_DEFAULT_REGION name it",
    ),
    (r"^NoSuchBucket", "make the bucket or correct the url"),
    (r"^SlowDown|^ServiceUnavailable|^503", "repeat the command when the server is less busy"),
)
"""What the server's code and words begin with or hold, and what is to be done then."""
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
    """Convert errors of botocore, aiohttp and s3fs into OSErrors that name `url`.

    What the server answered is in their text, and the remedy for its code in a note.
    """
    from botocore.exceptions import (
        BotoCoreError,
        CredentialRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
        TokenRetrievalError,
    )
    from s3fs.core import S3_RETRYABLE_ERRORS

    try:
        yield
    except FileNotFoundError as error:
        missing = answer_of(error).get("Error", {})
        if missing.get("Code") == "NoSuchBucket":
            raise with_remedy(_refusal(missing, errno.ENOENT, url), _REMEDIES) from error
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from error
    except (
        CredentialRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
        TokenRetrievalError,
    ) as error:
        raise with_remedy(PermissionError(errno.EACCES, str(error), url), _REMEDIES) from error
    except (BotoCoreError, *S3_RETRYABLE_ERRORS) as error:
        raise with_remedy(ConnectionError(f"{url}: {error}"), _REMEDIES) from error
    except OSError as error:
        answer = _worded(answer_of(error), url)
        if not answer:
            raise
        refusal = _refusal(answer.get("Error", {}), _number(answer, error), url)
        raise with_remedy(refusal, _REMEDIES) from error.__cause__


def answer_of(error: OSError) -> dict[str, Any]:
    """Return the server's answer that an error was made of; {} when there was none."""
    return getattr(error.__cause__, "response", None) or {}


def _worded(answer: dict[str, Any], url: str) -> dict[str, Any]:
    """Return the answer, or that of a listing: the answer to a HEAD has a number and no words."""
    if answer.get("Error", {}).get("Code", "").isdecimal():
        bucket = url.partition("://")[2].partition("/")[0]
        try:
            connection().call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except OSError as error:
            return answer_of(error) or answer
    return answer


def _refusal(answer: Mapping[str, str], number: int, url: str) -> OSError:
    """Return the error of an answer: the server's code and its own words."""
    return OSError(number, ": ".join(filter(None, map(answer.get, ("Code", "Message")))), url)


def _number(answer: Mapping[str, Any], error: OSError) -> int:
    """Return the errno of an answer; OSError makes a PermissionError and so on of it."""
    code = answer.get("Error", {}).get("Code", "")
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 507 or _FULL.search(code):
        return errno.ENOSPC
    if status in (401, 403) or isinstance(error, PermissionError) or code in _REFUSED:
        return errno.EACCES
    return error.errno or errno.EIO
