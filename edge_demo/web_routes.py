"""Paths of the web view and the rules in front of them. Imported only where the web libraries are installed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_demo.errors import InputError
from edge_demo.web_access import Access, meant_for_us, same_origin, token_matches

BODY_BYTES = 4096
VIEWERS = 6  # live pictures at a time, as many event streams: four who watch, and two who hang for some seconds


class View(Protocol):
    """What the paths show and change."""

    def stats(self) -> dict[str, object]:
        """`Live`, with what only the server knows."""
        ...

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """The Prometheus text and its content type."""
        ...

    def health(self) -> str:
        """Why it is not healthy, or empty."""
        ...

    def snapshot(self, *, overlay: bool | None) -> tuple[bytes, int] | None:
        """JPEG and frame number: as shown (None), drawn on (True), or exactly as captured (False)."""
        ...

    def control(self, body: bytes) -> None:
        """Apply a change; InputError when it is refused."""
        ...

    def full(self, kind: str) -> bool:
        """Whether no more of `stream` or `events` are taken."""
        ...

    async def stream(self, fps: float | None, receive: Receive, send: Send) -> None:
        """Pictures, until the viewer leaves."""
        ...

    async def events(self, receive: Receive, send: Send) -> None:
        """Event lines, until the listener leaves."""
        ...


def application(view: View, page: str, access: Access, headers: Mapping[str, str]) -> ASGIApp:
    """All paths behind the rules of `web_access`; every answer carries `headers`.

    What needs a lock or encodes a picture is a plain `def`, which the server runs in its thread pool.
    """
    gets = {
        "/stats.json": _stats,
        "/metrics": _metrics,
        "/healthz": _health,
        "/snapshot.jpg": _snapshot,
        "/stream.mjpg": _stream,
        "/events": _events,
    }
    routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]
    routes.append(Route("/", lambda _: HTMLResponse(page), methods=["GET"]))
    routes.append(Route("/control", _control, methods=["POST"]))
    app = Starlette(routes=routes, exception_handlers={InputError: _refused})
    app.state.view = view
    return _guarded(app, access, headers)


def _view(request: Request) -> View:
    view: View = request.app.state.view
    return view


def _stats(request: Request) -> Response:
    return JSONResponse(_view(request).stats())


def _metrics(request: Request) -> Response:
    body, content_type = _view(request).metrics(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


def _health(request: Request) -> Response:
    reason = _view(request).health()
    return PlainTextResponse(f"{reason or 'ok'}\n", status_code=503 if reason else 200)


def _snapshot(request: Request) -> Response:
    wanted = request.query_params.get("overlay")
    if wanted not in (None, "0", "1"):
        raise InputError("overlay is 0 or 1", "leave it out for the picture as shown")
    got = _view(request).snapshot(overlay=None if wanted is None else wanted == "1")
    if got is None:
        return JSONResponse({"error": "no frame processed yet"}, status_code=503)
    return Response(got[0], media_type="image/jpeg", headers={"X-Frame-Id": str(got[1])})


async def _control(request: Request) -> Response:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return JSONResponse({"error": "send Content-Type: application/json"}, status_code=415)
    body = await _body(request)
    if body is None:
        error = f"the body is over {BODY_BYTES} bytes"
        return JSONResponse({"error": error}, status_code=413, headers={"Connection": "close"})
    await run_in_threadpool(_view(request).control, body)  # teaching computes and writes to the disk
    return JSONResponse(await run_in_threadpool(_view(request).stats))


async def _stream(request: Request) -> Response:
    view, fps = _view(request), _fps(request.query_params.get("fps"))
    if view.full("stream"):
        return JSONResponse({"error": f"there are {VIEWERS} viewers, no more are taken"}, status_code=503)
    return _Direct(lambda receive, send: view.stream(fps, receive, send))


async def _events(request: Request) -> Response:
    view = _view(request)
    if view.full("events"):
        return JSONResponse({"error": f"there are {VIEWERS} listeners, no more are taken"}, status_code=503)
    return _Direct(view.events)


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


class _Direct(Response):
    """A response that talks to the connection itself."""

    def __init__(self, body: Callable[[Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._body(receive, send)


def _fps(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        fps = float(text)
    except ValueError:
        fps = 0.0
    if not 0 < fps <= 1000:
        raise InputError("fps is a number above 0", "leave it out for every picture")
    return fps


async def _body(request: Request) -> bytes | None:
    """The body; None when it is longer than allowed, without reading it to its end."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            return None
    return body


# --- the rules -------------------------------------------------------------------------------------------------------


def _guarded(app: ASGIApp, access: Access, headers: Mapping[str, str]) -> ASGIApp:
    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await (_refusal(Request(scope), access) or app)(scope, receive, with_headers)

    return asgi


def _refusal(request: Request, access: Access) -> Response | None:
    """The answer to a request that must not reach the paths; None when it may."""
    host = request.headers.get("host", "")
    if request.method not in ("GET", "POST"):
        return JSONResponse({"error": "GET and POST only"}, status_code=405, headers={"Allow": "GET, POST"})
    if not meant_for_us(access, host):
        return JSONResponse({"error": "this Host is not served here"}, status_code=421)
    if request.method == "POST" and not same_origin(host, request.headers.get("origin")):
        return JSONResponse({"error": "this Origin may not control the demo"}, status_code=403)
    if request.method == "GET" and request.url.path == "/" and "token" in request.query_params:
        return _welcome(request.query_params["token"], access)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(access.cookie)
    if not token_matches(access, given):
        error = "a token is needed: open the address that the demo printed at its start"
        return JSONResponse({"error": error}, status_code=401, headers={"WWW-Authenticate": "Bearer"})
    return None


def _welcome(token: str, access: Access) -> Response:
    """Trade the token in the address for a cookie: an <img> cannot send headers, and addresses end up in histories."""
    if not token_matches(access, token):
        return JSONResponse({"error": "wrong token"}, status_code=401, headers={"WWW-Authenticate": "Bearer"})
    welcome = RedirectResponse("/", status_code=303)
    if access.token:
        welcome.set_cookie(access.cookie, access.token, httponly=True, samesite="strict", path="/")
    return welcome
