"""A port in use, an address that is not ours, and an end by signal."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from pinhole.errors import PinholeError
from pinhole.server.listen import listen, run, running


async def hello(scope: dict, receive, send) -> None:  # type: ignore[no-untyped-def,type-arg]
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PinholeError, match=rf"the port is in use by another program \(127.0.0.1:{port}\). name another with --port") as caught:
            run(hello, port=port)
        assert caught.value.exit_code == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 300])
def test_not_our_address(host: str) -> None:
    with pytest.raises(PinholeError, match="cannot listen there") as caught:
        listen(host, 0)
    assert caught.value.exit_code == 2


def test_running() -> None:
    with running(hello) as address, urllib.request.urlopen(address, timeout=5) as response:
        assert response.read() == b"hello"
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=1)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_signal(ending: signal.Signals) -> None:
    program = "import test_listen; from pinhole.server.listen import run; run(test_listen.hello, port=0, ready=lambda a: print(a, flush=True))"
    folder = __file__.rsplit("/", 1)[0]
    with subprocess.Popen([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(ending)
        process.wait(10)
        if ending == signal.SIGTERM:
            assert "Traceback" not in process.stderr.read()
