"""HTTP to one server: small exchanges, and answers that come line by line, over connections that are kept.

Plain ``http.client``: whoever waits on a socket can set how long before every read, and another thread can end the wait,
which is how an answer is cancelled. Everything that goes wrong on the way is :class:`~pinhole.errors.EngineDown` with the
server's address. Knows nothing of what is asked.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pinhole.errors import EngineDown, UsageError

IDLE = 4.0  # seconds that a connection is kept unused: uvicorn closes its end after five
KEY = "PINHOLE_ENGINE_KEY"  # sent as the bearer's token, for servers that were started with --api-key
LONGEST = 1 << 22  # bytes of a line


class Slow(EngineDown):
    """The server is there and says nothing."""


@dataclass(frozen=True)
class Reply:
    status: int
    data: bytes

    def json(self) -> Any:
        """What was answered, or None where that is no JSON."""
        try:
            return json.loads(self.data)
        except ValueError:
            return None

    @property
    def message(self) -> str:
        """The server's own words for what is wrong."""
        found = self.json()
        error = found.get("error", found) if isinstance(found, dict) else None
        text = error.get("message") if isinstance(error, dict) else None
        return " ".join((text if isinstance(text, str) else self.data[:200].decode("utf-8", "replace")).split())[:300]


def addresses(text: str) -> list[str]:
    """``"http://a:8000,http://b:8000/v1"`` → addresses without a path. Raises :class:`UsageError` for anything else."""
    found = [one.strip().rstrip("/").removesuffix("/v1") for one in text.split(",") if one.strip()]
    for one in found:
        try:
            parts = urlsplit(one)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
        except ValueError:
            good = False
        if not good:
            raise UsageError("not an address of a server", where=one, fix="write it as in http://127.0.0.1:8000; several are separated by commas")
    if not found:
        raise UsageError("no server is named", where="engine url", fix="name one as in --engine-url http://127.0.0.1:8000")
    if twice := [one for one in found if found.count(one) > 1]:
        raise UsageError("the same server is named twice", where=twice[0], fix="name each once")
    return found


class Upstream:
    """One server. Any number of threads may; each exchange has a connection to itself."""

    def __init__(self, url: str, connect_seconds: float) -> None:
        self.url, self._connect_seconds = url, connect_seconds
        self._parts = urlsplit(url)
        self._idle: deque[tuple[http.client.HTTPConnection, float]] = deque()
        key = os.environ.get(KEY)
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def get(self, path: str, seconds: float) -> Reply:
        return self._whole("GET", path, None, seconds)

    def post(self, path: str, body: Any, seconds: float) -> Reply:
        return self._whole("POST", path, body, seconds)

    def _whole(self, method: str, path: str, body: Any, seconds: float) -> Reply:
        lines = self.lines(method, path, body, seconds)
        try:
            return Reply(lines.status, lines.rest(seconds))
        finally:
            lines.close()

    def lines(self, method: str, path: str, body: Any, seconds: float, watch: Watch | None = None) -> Lines:
        """Send, and wait ``seconds`` for the beginning of an answer; ``watch`` may end that wait."""
        data = None if body is None else json.dumps(body).encode()
        while True:
            connection, kept = self._connection()
            try:
                assert connection.sock is not None
                if watch is not None:
                    watch.on(connection.sock)
                connection.sock.settimeout(seconds)
                sock = connection.sock
                connection.request(method, (self._parts.path or "") + path, data, self._headers)
                return Lines(self, connection, sock, connection.getresponse(), seconds, watch)
            except Exception as error:
                if watch is not None:
                    watch.off()
                connection.close()
                if kept and not isinstance(error, TimeoutError) and not (watch is not None and watch.over):
                    continue  # it was closed at the other end while nobody looked
                raise self.trouble(error, seconds) from None

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        while self._idle:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - since < IDLE and connection.sock is not None:
                return connection, True
            connection.close()
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._connect_seconds)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            connection.close()
            reason = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
            raise EngineDown(f"the engine's server cannot be reached: {reason.lower()}", where=self.url, fix="start it, or name another") from None
        return connection, False

    def keep(self, connection: http.client.HTTPConnection) -> None:
        self._idle.append((connection, time.monotonic()))

    def trouble(self, error: Exception, seconds: float) -> EngineDown:
        """What went wrong, in words."""
        if isinstance(error, EngineDown):
            return error
        if isinstance(error, TimeoutError):
            fix = "it hangs or has too much to do; [engine] in pinhole.toml says how long it may take"
            return Slow(f"the engine's server said nothing for {seconds:g} s", where=self.url, fix=fix)
        if isinstance(error, http.client.HTTPException) and not isinstance(error, (http.client.RemoteDisconnected, http.client.IncompleteRead)):
            return EngineDown("the engine's server does not speak HTTP", where=self.url, fix="name the address of a vLLM server")
        return EngineDown("the engine's server broke the connection off", where=self.url, fix="look whether it still runs")


class Watch:
    """Ends a wait on a socket from another thread: on the one that is waited for by then, and on none that is done with."""

    def __init__(self) -> None:
        self.over = False
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()

    def on(self, sock: socket.socket) -> None:
        with self._lock:
            self._sock = sock
            if self.over:
                _shut(sock)

    def off(self) -> None:
        with self._lock:
            self._sock = None

    def end(self) -> None:
        with self._lock:
            self.over = True
            if self._sock is not None:
                _shut(self._sock)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Lines:
    """An answer that is being read. Close it: read to its end, its connection is kept; otherwise the server is told that nobody listens."""

    def __init__(
        self,
        upstream: Upstream,
        connection: http.client.HTTPConnection,
        sock: socket.socket,
        response: http.client.HTTPResponse,
        seconds: float,
        watch: Watch | None,
    ) -> None:
        self._upstream, self._connection, self._sock, self._response, self._seconds = upstream, connection, sock, response, seconds
        self._watch = watch
        self.status = response.status
        self.type = response.headers.get_content_type()

    def rest(self, seconds: float) -> bytes:
        """All of it."""
        try:
            self._sock.settimeout(seconds)
            return self._response.read()
        except Exception as error:
            raise self._upstream.trouble(error, seconds) from None

    def events(self, timeouts: Iterator[float]) -> Iterator[bytes]:
        """What stands behind ``data:``, line by line; the next of ``timeouts`` bounds the wait for each read."""
        seconds = self._seconds
        try:
            for seconds in timeouts:
                self._sock.settimeout(max(0.001, seconds))
                line = self._response.readline(LONGEST)
                if not line:
                    return
                if line.startswith(b"data:"):
                    yield line[5:].strip()
        except Exception as error:
            raise self._upstream.trouble(error, seconds) from None

    def close(self) -> None:
        if self._watch is not None:
            self._watch.off()
        if self._response.isclosed() and not self._response.will_close and self._connection.sock is not None:
            self._upstream.keep(self._connection)
        else:
            self._response.close()
            self._connection.close()
