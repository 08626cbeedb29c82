"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOWEST = 10_000


def free_port() -> int:
    """Returns a port that no process listens on.

    It is below those that the kernel assigns to connections and to servers that ask for any port:
    one of them could take it between this call and its use.
    """
    of_connections = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(LOWEST, max(of_connections, LOWEST + 10_000))
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
