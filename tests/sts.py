"""Session tokens on loopback: SeaweedFS gives them to whom an identity provider vouches for."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

from tests.s3 import s3_server

NAME = "tests"
ROLE = f"arn:aws:iam::role/{NAME}"

Session = dict[str, str]  # what stands in an AWS file


@contextmanager
def sts_server(folder: Path, life_s: int) -> Iterator[tuple[dict[str, str], Callable[[], Session]]]:
    """Runs an S3 server whose sessions end after some time.

    Gives the AWS variables of a user without a session, and the function that asks for one.
    """
    with (
        identity_provider() as (issuer, vouch),
        s3_server(folder, _iam(issuer, life_s)) as environment,
    ):
        sts = boto3.client(
            "sts",
            endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
            region_name=environment["AWS_REGION"],
            config=Config(signature_version=UNSIGNED),
        )

        def new_session() -> Session:
            given = sts.assume_role_with_web_identity(
                RoleArn=ROLE, RoleSessionName=NAME, WebIdentityToken=vouch()
            )["Credentials"]
            return {
                "aws_access_key_id": given["AccessKeyId"],
                "aws_secret_access_key": given["SecretAccessKey"],
                "aws_session_token": given["SessionToken"],
            }

        yield environment, new_session


@contextmanager
def identity_provider() -> Iterator[tuple[str, Callable[[], str]]]:
    """An OpenID Connect provider; gives its URL, and the function that writes its tokens."""
    key = generate_private_key(65537, 2048)
    numbers = key.public_key().public_numbers()
    public = {
        **{"kid": NAME, "kty": "RSA", "alg": "RS256", "use": "sig"},
        **{"n": _base64(numbers.n.to_bytes(256)), "e": _base64(numbers.e.to_bytes(3))},
    }

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": [public]}).encode())

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        issuer = f"http://127.0.0.1:{server.server_port}"

        def vouch() -> str:
            header = {"alg": "RS256", "kid": NAME}
            claims = {"iss": issuer, "aud": NAME, "sub": NAME, "exp": int(time.time()) + 3600}
            signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
            return f"{signed}.{_base64(key.sign(signed.encode(), PKCS1v15(), SHA256()))}"

        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield issuer, vouch
        finally:
            server.shutdown()


def _iam(issuer: str, life_s: int) -> dict[str, object]:
    """SeaweedFS's configuration: whom the provider vouches for may do anything, for a while."""
    provider = {"issuer": issuer, "clientId": NAME, "jwksUri": f"{issuer}/keys"}
    trust = {
        "Effect": "Allow",
        "Principal": {"Federated": NAME},
        "Action": ["sts:AssumeRoleWithWebIdentity"],
    }
    anything = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}
    return {
        "sts": {
            "tokenDuration": f"{life_s}s",
            "maxSessionLength": "1h",
            "issuer": NAME,
            "signingKey": base64.b64encode(bytes(32)).decode(),
            "providers": [{"name": NAME, "type": "oidc", "enabled": True, "config": provider}],
        },
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "roleStore": {"storeType": "memory"},
        "policies": [{"name": NAME, "document": _document(anything)}],
        "roles": [
            {
                "roleName": NAME,
                "roleArn": ROLE,
                "trustPolicy": _document(trust),
                "attachedPolicies": [NAME],
            }
        ],
    }


def _document(statement: dict[str, object]) -> dict[str, object]:
    return {"Version": "2012-10-17", "Statement": [statement]}


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
