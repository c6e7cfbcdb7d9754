"""Addresses of the network from which nothing is fetched for users: a machine keeps its own secrets there."""

from __future__ import annotations

import ipaddress
from typing import Union

CLOSED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::254/128",
        "0.0.0.0/32",
        "::/128",
        "224.0.0.0/4",
        "ff00::/8",
    )
)
"""Link-local addresses (a cloud keeps the credentials of its machines there) and what is no machine."""


def is_closed(address: Union[ipaddress.IPv4Address, ipaddress.IPv6Address]) -> bool:
    """Also where an IPv4 address is written as one of IPv6."""
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    return any(inner in network for network in CLOSED_NETWORKS)
