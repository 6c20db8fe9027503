"""How S3 servers are reached: the standard AWS variables, read in one way for all libraries."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from adu.errors import UserError

CONNECT_TIMEOUT_S = 5
# Longest silence of a server; ADU_READ_TIMEOUT_S in the environment changes it.
READ_TIMEOUT_S = 30.0
READ_TIMEOUT_VARIABLE = "ADU_READ_TIMEOUT_S"
# How often a request is sent, at most; AWS_MAX_ATTEMPTS in the environment changes it.
MAX_ATTEMPTS = 4
KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# A profile with one of these has keys that botocore asks for, and renews, by itself.
RENEWED_BY_BOTOCORE = {
    *("role_arn", "credential_process", "sso_session", "sso_start_url"),
    "web_identity_token_file",
}
# The AWS files: the variable that names one, and where it lies otherwise.
AWS_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
}


def is_s3(url: str) -> bool:
    """Whether a URL is a place in an S3 server."""
    return url.startswith(("s3://", "s3a://"))


@dataclass(frozen=True)
class S3Settings:
    """How an S3 server is reached.

    Attributes:
        endpoint: Its URL; None for AWS.
        region: Its region; None to leave it to the library.
        profile: Profile of the AWS configuration files that holds the keys, if no key is given.
        key: Access key.
        secret: Its secret.
        token: Session token of temporary keys.
    """

    endpoint: str | None
    region: str | None
    profile: str | None
    key: str | None
    secret: str | None
    token: str | None

    @property
    def path_style(self) -> bool:
        """Whether the bucket stands in the path: few servers but AWS's name a host for each."""
        return self.endpoint is not None


def s3_settings() -> S3Settings:
    """The standard AWS variables; what they leave open is read from the AWS profile.

    Raises:
        UserError: If ``AWS_PROFILE`` names a profile that does not exist.
    """
    variable = os.environ.get
    endpoint = variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL")
    region = variable("AWS_REGION") or variable("AWS_DEFAULT_REGION")
    keys = tuple(map(variable, KEY_VARIABLES))
    if endpoint is None or region is None or keys[0] is None:
        in_profile = _profile_settings(variable("AWS_PROFILE"), _stamps())
        endpoint = endpoint or in_profile.get("endpoint_url")
        region = region or in_profile.get("region")
        if keys[0] is None and not RENEWED_BY_BOTOCORE & in_profile.keys():
            keys = tuple(in_profile.get(name.lower()) for name in KEY_VARIABLES)
    return S3Settings(endpoint, region, variable("AWS_PROFILE"), *keys)


def mlflow_variables() -> dict[str, str]:
    """The environment with which MLflow's S3 client reaches the same server in the same way.

    MLflow asks boto3, which finds keys and profile by itself but reads the region from another
    variable, and addresses buckets by host name unless told.
    """
    settings = s3_settings()
    variables = {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": str(_max_attempts())}
    if settings.endpoint:
        variables["MLFLOW_S3_ENDPOINT_URL"] = settings.endpoint
        variables["MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"] = "path"
    if settings.region:
        variables["AWS_DEFAULT_REGION"] = settings.region
    return variables


def s3fs_options() -> dict[str, Any]:
    """The settings as s3fs takes them.

    Keys are given explicitly, although botocore would find them: fsspec hands out the same file
    system again for the same options, even if the environment or the AWS files have changed since.
    So temporary keys that somebody renews in the AWS files are taken up at once. Those of instance
    roles and of other sources that botocore asks itself, it renews itself.
    """
    settings = s3_settings()
    addressing = {"s3": {"addressing_style": "path"}} if settings.path_style else {}
    return {
        "profile": settings.profile,
        "key": settings.key,
        "secret": settings.secret,
        "token": settings.token,
        "endpoint_url": settings.endpoint,
        "client_kwargs": {"region_name": settings.region},
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": _number_in(READ_TIMEOUT_VARIABLE, READ_TIMEOUT_S),
            "retries": {"total_max_attempts": _max_attempts(), "mode": "standard"},
            # As many connections as threads may read at a time.
            "max_pool_connections": 64,
            **addressing,
        },
        # Another process may have written since: never answer from a listing of before.
        "use_listings_cache": False,
    }


def _max_attempts() -> int:
    return max(int(_number_in("AWS_MAX_ATTEMPTS", MAX_ATTEMPTS)), 1)


def _number_in(variable: str, default: float) -> float:
    """A positive number in the environment.

    Raises:
        UserError: If it is something else.
    """
    text = os.environ.get(variable) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{variable} = '{text}': is not a number above 0")
    return number


def _stamps() -> tuple[tuple[int, ...], ...]:
    """What changes when one of the AWS files does."""
    stamps = []
    for variable, place in AWS_FILES.items():
        with suppress(OSError, RuntimeError):
            status = Path(os.environ.get(variable) or place).expanduser().stat()
            stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


@lru_cache(maxsize=16)
def _profile_settings(profile: str | None, stamps: object) -> dict[str, str]:
    """Region, ``endpoint_url`` and keys of a profile in the AWS files, as these are now.

    Args:
        profile: Its name; None for the default one.
        stamps: Of the files; others are read anew.
    """
    from botocore.exceptions import BotoCoreError, ProfileNotFound
    from botocore.session import Session

    session = Session(profile=profile)
    try:
        values = dict(session.get_scoped_config())
        # An endpoint for S3 alone stands in a section of its own.
        services = session.full_config.get("services", {}).get(values.get("services"), {})
        return values | dict(services.get("s3", {}))
    except ProfileNotFound as error:
        raise UserError(f"AWS_PROFILE '{profile}': no such profile") from error
    except (BotoCoreError, ValueError, TypeError, AttributeError) as error:
        # A section that is a line, bytes in no known encoding, a line without "=".
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"AWS configuration files: cannot be read ({reason})") from error
