"""Ports for servers on this machine."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress

# Below the range from which Linux takes the ports of outgoing connections, so that none is lost
# between this search and the server's start, and above that of Ray's workers.
PORTS = range(20_000, 32_000)


def free_ports(n: int) -> list[int]:
    """Distinct ports of loopback that nothing listens on."""
    ports = _free()
    return [next(ports) for _ in range(n)]


def _free() -> Iterator[int]:
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            yield port
