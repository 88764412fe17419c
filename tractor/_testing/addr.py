"""
Registry addresses for test sessions.

Owns the choice of an address which no other session on this host uses: suites of
several checkouts run side by side, and none of them may meet the default registry.
Used by the `reg_addr` fixture and by tests that need a second registry.
"""

from __future__ import annotations

import os
import random
import socket
from typing import Final

_FIRST_PORT: Final = 1024
_PORTS: Final = 9000

# Ports handed out by this process, so that two calls never agree.
_given_ports: set[int] = set()


def get_rando_addr(tpt_proto: str) -> tuple[str, int] | tuple[str, str]:
    """
    Pick a registry address of the transport that is free at the moment.

    Args:
        tpt_proto: Transport key, `'tcp'` or `'uds'`.
    Returns:
        The unwrapped address: `(host, port)` with a port in 1024..10023, or
        `(directory, file name)`.
    Raises:
        KeyError: No such transport on this platform.
        RuntimeError: Every port of the range is taken.
    """
    # The address classes load trio, which collecting tests does without.
    from tractor.discovery._addr import _address_types

    address_type = _address_types[tpt_proto]
    default = address_type.get_root().unwrap()
    if tpt_proto == 'tcp':
        return _free_tcp_addr(str(address_type.def_bindspace), taken=default[1])

    while (address := address_type.get_random().unwrap()) == default:
        continue
    return address


def _free_tcp_addr(host: str, taken: object) -> tuple[str, int]:
    # The pid salts the order: generators seeded alike must not make two sessions meet.
    offsets = random.sample(range(_PORTS), _PORTS)
    for offset in offsets:
        port = _FIRST_PORT + (offset + os.getpid()) % _PORTS
        if port == taken or port in _given_ports or not _can_bind(host, port):
            continue
        _given_ports.add(port)
        return host, port

    raise RuntimeError(
        f'no free TCP port on {host} in {_FIRST_PORT}..{_FIRST_PORT + _PORTS - 1}; '
        f'this process took {len(_given_ports)} of them'
    )


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
