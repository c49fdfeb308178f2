"""The edge: where an error becomes one JSON object and a status, and where every answer gets its safety headers.

Errors take OpenAI's form, ``{"error": {"message", "type", "param", "code"}}``, so that its clients show them. Logs
hold method, path, status and time: never a body, never the text of an unexpected exception (it may quote one).
Does not authenticate anybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pinhole.errors import Busy, EngineError, PinholeError, UsageError

log = logging.getLogger("pinhole.server")

RETRY_AFTER = "2"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DATA_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


class TooLarge(UsageError):
    """A request body over ``[serve] max_body_bytes``; ``more`` says whether the client is still sending it."""

    status = 413
    more = True


class NotJson(UsageError):
    """A request body that is not declared as JSON (a page of another site cannot declare it without asking first)."""

    status = 415


def error_object(error: PinholeError, param: str | None = None) -> dict[str, Any]:
    """The error in OpenAI's form; ``code`` is the name of the exception in snake case."""
    kind = "invalid_request_error" if error.status < 500 else "overloaded_error" if isinstance(error, Busy) else "server_error"
    code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    message = error.what if isinstance(error, EngineError) else str(error)
    return {"error": {"message": message, "type": kind, "param": param or getattr(error, "param", None), "code": code}}


def unexpected(error: BaseException, doing: str) -> PinholeError:
    """Log where an unforeseen exception came from, without its text, and give the client one line."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: unexpected %s\n%s", doing, type(error).__name__, frames)
    return PinholeError("something went wrong in the server", fix="its log says where")


def error_response(error: PinholeError) -> JSONResponse:
    headers = {"Retry-After": RETRY_AFTER} if error.status == 503 else None
    return JSONResponse(error_object(error), status_code=error.status, headers=headers)


async def on_pinhole_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PinholeError)
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = {"error": {"message": str(error.detail), "type": "invalid_request_error", "param": None, "code": f"http_{error.status_code}"}}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


class Edge:
    """Around the whole application: safety headers, one log line a request, and no exception that leaves it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message.get("headers", ())}
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], *(pair for pair in _ALWAYS if pair[0] not in present)]
                if b"content-security-policy" not in present:
                    message["headers"].append((b"content-security-policy", DATA_POLICY.encode()))
            await send(message)

        try:
            await self.app(scope, receive, guarded)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:  # the last line of defence
            failure = error if isinstance(error, PinholeError) else unexpected(error, f"{scope['method']} {scope['path']}")
            if not status:
                await error_response(failure)(scope, receive, guarded)
        finally:
            log.info("%s %s %s %.0f ms", scope["method"], scope["path"], status or "-", 1000 * (time.perf_counter() - started))


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The body as a JSON object, with no more than ``limit`` bytes of it ever held.

    Raises :class:`TooLarge`, :class:`NotJson`, or :class:`UsageError` for anything that is no JSON object.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise NotJson("the body is not declared as JSON", fix="send the header `Content-Type: application/json`")
    too_large = TooLarge(f"the request is larger than {limit:,} bytes", fix="send fewer or smaller pictures, or raise `[serve] max_body_bytes`")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            too_large.more = more
            raise too_large
    return parse_object(bytes(body))


def parse_object(body: bytes) -> dict[str, Any]:
    """Strict JSON to a dict: no NaN, no duplicate trouble, nesting within reason, lone surrogates replaced."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        value = _clean(value)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(":")[0][:120]
        raise UsageError(f"the body is not valid JSON: {reason}", fix="send one JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise UsageError("the body is not a JSON object", fix='send {"model": …, "messages": […]}')
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _clean(value: Any, depth: int = 0) -> Any:
    """Replace lone surrogates, which no tokenizer or encoder takes, and bound the depth."""
    if depth > 64:
        raise RecursionError
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(part, depth + 1) for part in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(part, depth + 1) for key, part in value.items()}
    return value


async def drain(receive: Receive, limit: int = 64_000_000, seconds: float = 5.0) -> None:
    """Read and forget what a client is still sending, within bounds. A connection that is closed on unread bytes is
    reset, and a reset can overtake the answer: the client would see a broken pipe where we told it "too large"."""

    async def forget() -> None:
        read, more = 0, True
        while more and read < limit:
            message = await receive()
            read += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)

    try:
        await asyncio.wait_for(forget(), seconds)
    except TimeoutError:
        return


class LastWord(JSONResponse):
    """An answer given before the request was read: sent at once, then the rest of the request is drained."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def on_too_large(request: Request, error: Exception) -> Response:
    assert isinstance(error, TooLarge)
    return LastWord(error_object(error), status_code=error.status) if error.more else error_response(error)
