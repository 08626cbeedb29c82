"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, HIGHEST = 10_000, 65_535
ENOUGH = 1_000
"""Number of ports that makes it unlikely that two tests choose the same one."""


def free_port() -> int:
    """Returns a port that no process listens on.

    It is none of those that the kernel assigns to connections and to servers that ask for any port:
    one of them could take it between this call and its use.
    """
    first, last = map(int, OF_CONNECTIONS.read_text().split())
    ranges = choices(first, last)
    while True:
        port = random.SystemRandom().choice(ranges)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port


def choices(first: int, last: int) -> range:
    """Returns the ports outside those of connections, [first, last]; some of them if too few."""
    for lowest in (LOWEST, 2_000):
        if first - lowest >= ENOUGH:
            return range(lowest, first)
    if HIGHEST - last >= ENOUGH:
        return range(last + 1, HIGHEST + 1)
    return range(LOWEST, LOWEST + 10_000)
