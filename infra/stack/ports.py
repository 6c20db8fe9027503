"""Ports for servers on this machine."""

from __future__ import annotations

import itertools
import random
import socket

# Below the range from which Linux takes the ports of outgoing connections, so that none is lost
# between this search and the server's start, and above that of Ray's workers.
PORTS = range(20_000, 32_000)


def free_ports(n: int) -> list[int]:
    """Distinct ports of loopback that nothing listens on."""
    candidates = random.SystemRandom().sample(PORTS, len(PORTS))
    return list(itertools.islice(filter(is_free, candidates), n))


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of loopback."""
    with socket.socket() as probe:
        # As servers do: connections of a server that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True
