"""A socket for the verbs that serve."""

from __future__ import annotations

import socket


def listen(host: str, port: int | None, usual: int) -> socket.socket:
    """Return a socket that listens on an address: on a free port if none is asked for and the usual one is taken.

    Raises:
        OSError: if that is not possible.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for tried in (usual, 0) if port is None else (port,):
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, tried))
            listening.listen()  # who is there before the server waits, instead of being refused
            return listening
        except OSError as error:
            listening.close()
            if tried == 0 or port is not None:
                raise OSError(
                    f"{host}, port {tried}, cannot be listened on ({error.strerror}). Choose another --host or --port."
                ) from error
    raise AssertionError("one of the ports was tried")


def address_of(host: str, listening: socket.socket) -> str:
    """Return the address of a page that is served on a socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
