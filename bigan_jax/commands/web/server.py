"""The server of the page: 127.0.0.1 only, with a secret token in the address of every request.

An image is the body of a request of its own, not a form: it stays in memory, each result is shown as soon as it is
there, and no parser is needed.
"""

import asyncio
import base64
import hmac
import secrets
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bigan_jax.commands.web.scoring import LoadedRun
from bigan_jax.errors import UserError, one_line
from bigan_jax.reports.charts import ERROR_PALETTE
from bigan_jax.reports.html import render_html
from bigan_jax.reports.overlays import MAX_OPACITY

HOST = "127.0.0.1"
MAX_BYTES = 64 * 2**20  # of an image file
_MAX_CONNECTIONS = 32  # each may hold an image file in memory
_STATIC = Path(__file__).parent / "static"
_FILES = {"": ("app.html", "text/html"), "app.css": ("app.css", "text/css"), "app.js": ("app.js", "text/javascript")}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address has the token
    "Cache-Control": "no-store",  # results are kept nowhere
}
_NO_TOKEN = "This address has no valid token: open the address that the app printed in its terminal.\n"


class Guard:
    """Refuses every request whose path does not begin with the token, and adds the headers of all responses."""

    def __init__(self, app: ASGIApp, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        first = scope["path"].lstrip("/").partition("/")[0]
        is_valid = hmac.compare_digest(first.encode(), self._token)  # in constant time
        app = self._app if is_valid else PlainTextResponse(_NO_TOKEN, 403)
        await app(scope, receive, send_with_headers)


def make_app(runs: Sequence[LoadedRun], token: str, max_bytes: int = MAX_BYTES) -> Starlette:
    """Returns the ASGI application: the page below /TOKEN/, `runs` (JSON), and `score/INDEX` for image files."""
    worker = ThreadPoolExecutor(1)  # one image at a time, so that scorers need no lock
    description = {
        "runs": [run.describe() for run in runs],
        "max_bytes": max_bytes,
        "palette": base64.b64encode(ERROR_PALETTE.tobytes()).decode("ascii"),
        "max_opacity": MAX_OPACITY,
    }
    files = {path: Response((_STATIC / name).read_bytes(), media_type=kind) for path, (name, kind) in _FILES.items()}
    files["page.css"] = Response(render_html("page.css.jinja", {}), media_type="text/css")  # as in the reports

    async def send_file(request: Request) -> Response:
        return files.get(request.path_params["path"]) or PlainTextResponse("There is no such page.\n", 404)

    async def send_runs(_: Request) -> Response:
        return JSONResponse(description)

    async def score(request: Request) -> Response:
        if (index := request.path_params["index"]) >= len(runs):
            return JSONResponse({"reason": f"there is no run {index}"}, 404)
        name, condition = (request.query_params.get(field, "") for field in ("name", "condition"))
        content = bytearray()
        try:
            async for chunk in request.stream():
                content += chunk
                if len(content) > max_bytes:
                    reason = f"larger than {max_bytes / 2**20:g} MiB: save it as JPEG, or scale it down"
                    return JSONResponse({"name": name, "reason": reason}, 413)
            score_image = runs[index].score, name, bytes(content), condition
            return JSONResponse(await asyncio.get_running_loop().run_in_executor(worker, *score_image))
        except UserError as error:
            return JSONResponse({"name": name, "reason": str(error)}, 422)
        except ClientDisconnect:  # the page was closed
            return Response(status_code=400)
        except Exception as error:  # such as a device without memory; the next image may be fine
            traceback.print_exc()
            return JSONResponse({"name": name, "reason": f"the app failed: {one_line(error, 300)}"}, 500)

    routes = [Route("/runs", send_runs), Route("/score/{index:int}", score, methods=["POST"])]
    routes += [Route("/{path:path}", send_file)]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no other name leads here (DNS)
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[Middleware(Guard, token), hosts])


def listen(port: int) -> socket.socket:
    """Returns a socket that listens at a port of this machine; 0 is any free one. Raises UserError if it is in use."""
    listener = socket.socket()
    try:
        if sys.platform != "win32":  # where this would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"--port={port}: {error}. Use --port=0 for any free port.") from error
    return listener


def serve(runs: Sequence[LoadedRun], listener: socket.socket, open_browser: bool) -> None:
    """Prints the address of the page and serves it until Ctrl-C."""
    token = secrets.token_urlsafe()
    url = f"http://{HOST}:{listener.getsockname()[1]}/{token}/"
    print(f"{url}\nCtrl-C ends the app.", flush=True)
    if open_browser:  # in a thread, as a browser for the terminal would block
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
    with suppress(KeyboardInterrupt):  # raised again after the server has closed its connections
        make_server(make_app(runs, token)).run(sockets=[listener])


def make_server(app: Starlette) -> uvicorn.Server:
    """Returns a server for one user."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="critical",  # its errors are interrupted requests; `make_app` reports those of scores
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,  # seconds, of a request that waits for its score
        )
    )
