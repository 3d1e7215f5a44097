"""What a worker says to its agent by `sd_notify(3)`: that it is ready, stops, and still works."""

from __future__ import annotations

import os
import socket


def notify(text: str) -> bool:
    """Sends it; whether there was somebody to send it to."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    if path.startswith("@"):
        path = "\0" + path[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as agent:
            agent.sendto(text.encode(), path)
    except OSError:
        return False
    return True
