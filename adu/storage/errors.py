"""What the errors of file systems mean: whether to ask again, and one line for a person."""

from __future__ import annotations

import errno

from adu.storage.s3 import is_s3, s3_settings


class NotAFileError(OSError):
    """A pipe, socket or device where a file should be."""


# What asking again does not change.
PERMANENT_ERRORS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
    NotAFileError,
)
# As s3fs translates a server's 500 and 503, and what sockets report.
TRANSIENT_ERRNOS = {
    *(errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EPIPE),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ETIMEDOUT),
}

# The same of temporary keys.
EXPIRED = ("ExpiredToken", "token has expired", "TokenRefreshRequired", "token needs refresh")

# The server's code, and the words that s3fs puts in its place.
NO_BUCKET = ("NoSuchBucket", "bucket does not exist")


def is_transient(error: BaseException) -> bool:
    """Whether the same transfer may succeed a moment later."""
    if isinstance(error, PERMANENT_ERRORS):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in TRANSIENT_ERRNOS
    return isinstance(error, _connection_errors())


def is_wrong_key(error: BaseException) -> bool:
    """Whether an S3 server does not know the key, or that it belongs to the secret."""
    text = _one_line(error)
    known = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "access key ID", "signature we calc")
    return any(words in text for words in known)


def is_expired(error: BaseException) -> bool:
    """Whether temporary keys have expired: whoever renews them may be about to."""
    if any(words in _one_line(error) for words in EXPIRED):
        return True
    # To some servers (SeaweedFS) the key of a session that is over is like any unknown one.
    return is_wrong_key(error) and s3_settings().token is not None


def explain(url: str, error: Exception) -> str:
    """One line for what went wrong with a URL, without the library's own wording where known."""
    text = _one_line(error)
    if is_s3(url) and any(words in text for words in NO_BUCKET):
        reason = "no such bucket"
    elif isinstance(error, FileNotFoundError):
        reason = "no such file or folder"
    elif isinstance(error, NotAFileError):
        reason = "is a pipe, socket or device, not a file"
    elif isinstance(error, IsADirectoryError):
        reason = "is a folder, not a file"
    elif is_s3(url) and is_expired(error):
        reason = "the session token has expired, and was not renewed"
        if is_wrong_key(error):
            reason += ", or it is not this server's"
    elif is_s3(url) and is_wrong_key(error):
        reason = "the access key or its secret is wrong (AWS_ACCESS_KEY_ID, AWS_PROFILE)"
    elif isinstance(error, PermissionError):
        reason = "permission denied"
    elif "NoCredentials" in type(error).__name__:
        reason = "no credentials (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
    elif "://" in url and ("connect" in text.lower() or "Timeout" in type(error).__name__):
        endpoint = (s3_settings().endpoint if is_s3(url) else None) or "its server"
        reason = f"cannot connect to {endpoint}"
    elif isinstance(error, NotADirectoryError | FileExistsError):
        reason = "a part of the path is a file, not a folder"
    else:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    return f"{url}: {' '.join(reason.split())}"


def _connection_errors() -> tuple[type[BaseException], ...]:
    """What the libraries below fsspec raise when a connection breaks off or is silent."""
    from aiohttp import ClientError
    from botocore.exceptions import (
        ConnectionError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )
    from fsspec.exceptions import FSTimeoutError

    return (
        *(ClientError, ConnectionError, HTTPClientError, ReadTimeoutError),
        *(IncompleteReadError, ResponseStreamingError, FlexibleChecksumError, FSTimeoutError),
    )


def _one_line(error: BaseException) -> str:
    # s3fs puts its own words in place of the server's code, which is in the cause.
    return " ".join(f"{error} {error.__cause__ or ''}".split())
