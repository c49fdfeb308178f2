"""Listening: a bound socket with an error that says what is in the way, and a server that ends gracefully.

Knows nothing of the application it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from pinhole.errors import PinholeError, UsageError


class _Server(uvicorn.Server):
    """uvicorn, one call when it listens, and one a second before what is still running at the end is cut off."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], stop: Callable[[], None], grace: float) -> None:
        super().__init__(config)
        self._ready, self._stop, self._grace = ready, stop, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.get_running_loop().call_later(self._grace, self._stop)
        await super().shutdown(sockets)
        stopping.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises :class:`PinholeError` saying what stands in the way."""
    where = f"{host}:{port}"
    fix = "name an address of this machine with --host"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen there: {getattr(error, 'strerror', None) or error}", where=where, fix=fix) from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(256)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PinholeError("the port is in use by another program", where=where, fix="name another with --port, or 0 for any free one") from None
        if error.errno == errno.EACCES:
            raise PinholeError("not allowed to listen on this port", where=where, fix="take one above 1023 with --port") from None
        raise UsageError(f"cannot listen there: {error.strerror}", where=where, fix=fix) from None
    return bound


def _server(app: Any, bound: socket.socket, host: str, ready: Callable[[str], None], grace: float) -> _Server:
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{bound.getsockname()[1]}"
    settings = uvicorn.Config(
        app,
        log_config=None,  # the owner's logging configuration, and one line a request of our own
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=round(grace) + 1,
        timeout_keep_alive=30,
    )
    stop = getattr(getattr(app, "state", None), "stop", None) or (lambda: None)
    return _Server(settings, lambda: ready(address), stop, grace)


def run(app: Any, host: str = "127.0.0.1", port: int = 8000, *, ready: Callable[[str], None] | None = None, grace: float = 10.0) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running answers finish for ``grace`` seconds; then ``app.state.stop`` ends them.

    ``ready`` is called once with the address when requests are taken. Raises as :func:`listen`.
    """
    with listen(host, port) as bound:
        _server(app, bound, host, ready or (lambda address: None), grace).run(sockets=[bound])


@contextlib.contextmanager
def running(app: Any, host: str = "127.0.0.1", port: int = 0, *, grace: float = 2.0) -> Iterator[str]:
    """Serve from a thread while inside; gives the address. For notebooks and tests."""
    addresses: list[str] = []
    up = threading.Event()

    def ready(address: str) -> None:
        addresses.append(address)
        up.set()

    with listen(host, port) as bound:
        server = _server(app, bound, host, ready, grace)
        thread = threading.Thread(target=lambda: server.run(sockets=[bound]), name="pinhole-server", daemon=True)
        thread.start()
        try:
            while not up.wait(0.05):
                if not thread.is_alive():
                    raise PinholeError("the server did not start", where=f"{host}:{port}", fix="its log says why")
            yield addresses[0]
        finally:
            server.should_exit = True
            thread.join(grace + 10)
