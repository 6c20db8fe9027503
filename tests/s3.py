"""A real S3 server on loopback: SeaweedFS, with keys and its data in a folder."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from infra.stack.ports import free_ports

START_TIMEOUT_S = 60
ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"

# The same user's next ones.
RENEWED_KEY, RENEWED_SECRET = "renewed-key", "renewed-secret"

# Somebody who may list a bucket and read a part of it.
GUEST_KEY, GUEST_SECRET = "guest-key", "guest-secret"
GUEST_BUCKET, GUEST_FOLDER = "guest-bucket", "open"


@contextmanager
def s3_server(folder: Path, iam: Mapping[str, object] | None = None) -> Iterator[dict[str, str]]:
    """Runs the server, perhaps with roles; gives the AWS variables that reach it."""
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    identities = {
        "identities": [
            {
                "name": "tests",
                "credentials": [
                    {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY},
                    {"accessKey": RENEWED_KEY, "secretKey": RENEWED_SECRET},
                ],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            },
            {
                "name": "guest",
                "credentials": [{"accessKey": GUEST_KEY, "secretKey": GUEST_SECRET}],
                "actions": [f"List:{GUEST_BUCKET}", f"Read:{GUEST_BUCKET}/{GUEST_FOLDER}*"],
            },
        ]
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "identities.json").write_text(json.dumps(identities))
    flags = [f"-{name}.port" for name in ("master", "volume", "filer", "s3")]
    flags += [f"{flag}.grpc" for flag in flags]
    ports = dict(zip(flags, free_ports(len(flags)), strict=True))
    command = [str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}"]
    command += ["-s3", *(f"{flag}={port}" for flag, port in ports.items())]
    command += [f"-s3.config={folder / 'identities.json'}", "-master.volumeSizeLimitMB=64"]
    # Every bucket takes several volumes; they are empty files until something is written.
    command += ["-volume.max=1000", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-master.telemetry=false"]
    if iam is not None:
        (folder / "iam.json").write_text(json.dumps(iam))
        command += [f"-s3.iam.config={folder / 'iam.json'}"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            endpoint = f"http://127.0.0.1:{ports['-s3.port']}"
            _wait(endpoint, server, folder / "server.log")
            yield {
                "AWS_ENDPOINT_URL_S3": endpoint,
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_REGION": "us-east-1",
            }
        finally:
            server.kill()
            server.wait()


def _wait(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"{endpoint}/healthz", timeout=1)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"no S3 server at {endpoint}: {log.read_text()[-2000:]}")
