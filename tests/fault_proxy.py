"""A proxy on loopback in front of a server: counts requests, and breaks some of them.

It hands on the Host header as it comes, which clients sign. Which requests break depends on the
seed, the method, the object's key and how often it was asked for: not on the order of threads, nor
on the name of the bucket, which differs from run to run.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

KINDS = ("500", "slow_down", "reset", "stall", "truncate")
# Not among the kinds: a body that is too short, with headers that say so. Only a hash tells.
SHORTEN = "shorten"

# What the proxy says of its own answers.
OWN_HEADERS = ("content-length", "transfer-encoding", "connection")

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'


class FaultProxy(ThreadingHTTPServer):
    """The proxy.

    Attributes:
        rate: Share of requests that break.
        kinds: How they break, each as often as the others.
        delay_s: How long every answer takes.
        served: Answers that were handed on whole, by method and path.
        broken: Requests that broke, by kind.
        expired: Keys that have expired.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, rate: float = 0.0, seed: int = 0, stall_s: float = 4) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlparse(upstream)
        self.rate = rate
        self.kinds: tuple[str, ...] = KINDS
        self.stall_s = stall_s
        self.delay_s = 0.0
        self.served: Counter[tuple[str, str]] = Counter()
        self.broken: Counter[str] = Counter()
        self.expired: set[str] = set()
        self._seed = seed
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """What clients take for the server."""
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, part: str) -> Counter[str]:
        """How often objects were handed out whose path holds a part, by path."""
        with self._lock:
            return Counter(
                {p: n for (method, p), n in self.served.items() if method == "GET" and part in p}
            )

    def fault(self, method: str, path: str) -> str | None:
        """How the next such request breaks, if it does."""
        with self._lock:
            self._asked[method, path] += 1
            _, _, key = path.removeprefix("/").partition("/")
            name = f"{self._seed}/{method}/{key}/{self._asked[method, path]}"
            drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
            if drawn >= self.rate:
                return None
            kind = self.kinds[int(drawn / self.rate * len(self.kinds))]
            self.broken[kind] += 1
            return kind

    def count(self, method: str, path: str) -> None:
        """Counts an answer that was handed on."""
        with self._lock:
            self.served[method, path] += 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are nothing to print."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def _serve(self) -> None:
        path = urlparse(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.server.delay_s)
        signed = self.headers.get("Authorization", "")
        if any(f"Credential={key}/" in signed for key in self.server.expired):
            self.server.broken["expired"] += 1
            self._refuse(403, "ExpiredToken")
            return
        kind = self.server.fault(self.command, path)
        if kind == "500":
            self._refuse(500, "InternalError")
        elif kind == "slow_down":
            self._refuse(503, "SlowDown")
        elif kind == "too_many":
            self._refuse(429, "TooManyRequests")
        elif kind == "reset":
            self._reset()
        elif kind == "stall":
            time.sleep(self.server.stall_s)
            self._reset()
        else:
            self._hand_on(body, kind, path)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _serve

    def _hand_on(self, body: bytes, kind: str | None, path: str) -> None:
        upstream = self.server.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name != "Expect"}
        connection.request(self.command, self.path, body or None, headers | {"Connection": "close"})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if kind == SHORTEN and self.command == "GET":
            data = data[: len(data) // 2]
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            hides = kind == SHORTEN and name.lower().startswith("x-amz-checksum")
            if not hides and name.lower() not in OWN_HEADERS:
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        length = answer.getheader("Content-Length") or "0" if is_head else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if kind == "truncate":
            self.wfile.write(data[: len(data) // 2])
            self._reset()
            return
        if not is_head:
            self.wfile.write(data)
        if kind is None:
            self.server.count(self.command, path)

    def _refuse(self, status: int, code: str) -> None:
        body = ERROR.format(code, "made up").encode() if self.command != "HEAD" else b""
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        """Closes with an RST, as a server that dies does."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def fault_proxy(upstream: str, rate: float = 0.0, seed: int = 0) -> Iterator[FaultProxy]:
    """Runs a proxy in front of a server."""
    with FaultProxy(upstream, rate, seed) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
