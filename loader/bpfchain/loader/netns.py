"""Which network namespace this is: a number that no other namespace of this boot has."""

from __future__ import annotations

import errno
import os
import socket
import sys

from bpfchain.loader.uapi import SO_NETNS_COOKIE


def cookie() -> int | None:
    """The cookie of the calling thread's network namespace (SO_NETNS_COOKIE, 5.14); None before."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
        try:
            value = one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:
                return None
            raise
    return int.from_bytes(value, sys.byteorder)


def key() -> str:
    """The namespace's name in a path: its cookie, or before 5.14 ``inode`` and a number.

    An inode number can come back when its namespace is gone, and pins of the gone one with it:
    their links are at no interface then, which is seen.
    """
    number = cookie()
    if number is not None:
        return str(number)
    return f"inode{os.stat('/proc/thread-self/ns/net').st_ino}"
