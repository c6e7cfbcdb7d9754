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
        "192.0.0.192/32",
        "100.100.100.200/32",
        "0.0.0.0/32",
        "::/128",
        "224.0.0.0/4",
        "ff00::/8",
    )
)
"""Link-local addresses and others where a cloud keeps the credentials of its machines, and what is no machine."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_closed(address: Union[ipaddress.IPv4Address, ipaddress.IPv6Address]) -> bool:
    """Also where an IPv4 address is written as one of IPv6."""
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return any(inner in network for network in CLOSED_NETWORKS)
