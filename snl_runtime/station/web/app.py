"""The routes of the screen's server."""

import asyncio
import contextlib
import logging
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snl_runtime.errors import FrameError, SnlError, TriggerRefusedError
from snl_runtime.station.line_state import LineCommands, LineState
from snl_runtime.station.web.access import COOKIE, SESSION_S, Access
from snl_runtime.station.web.feed import ResultFeed, Shot
from snl_runtime.station.web.guard import Guard
from snl_runtime.station.web.live import LiveState, to_strict_json
from snl_runtime.station.web.pictures import Picture, PictureMaker

STATIC = Path(__file__).parent / "static"
MOST_BODY_BYTES = 4096
MOST_DISCARDED_BYTES = 1 << 20
"""What is read of a body that is too long: a client that still sends when the connection closes loses the answer that says why."""
COMMAND_TIMEOUT_S = 20.0
"""How long a command may take; a reset writes records that are missing."""
_BLIND = "the station cannot be looked at; its log says more"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenParts:
    """What the routes answer from.

    Attributes:
        access: Who may ask.
        feed: Pictures and parts that did not pass.
        make_live: Makes the live state, on the server's event loop.
        make_pictures: Makes the picture maker, on the server's event loop.
        commands: What may be asked of each camera.
        line_state: What the line sees of a camera now.
        on_start: Called once the loop runs.
    """

    access: Access
    feed: ResultFeed
    make_live: Callable[[], LiveState]
    make_pictures: Callable[[], PictureMaker]
    commands: Mapping[str, LineCommands]
    line_state: Callable[[str], LineState]
    on_start: Callable[[LiveState], None]


def make_app(parts: ScreenParts) -> Guard:
    """Return the ASGI application.

    Raises:
        ImportError: If FastAPI is missing.
    """
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse
    from fastapi.staticfiles import StaticFiles
    from starlette.exceptions import HTTPException

    routes = _Routes(parts)
    # No pages of FastAPI's own: they load scripts from elsewhere, and they tell strangers what can be asked.
    app = FastAPI(lifespan=routes.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(HTTPException, _one_line)
    app.add_exception_handler(Exception, _internal_error)
    read = ["GET", "HEAD"]
    app.router.add_route("/", routes.page, methods=read)
    app.router.add_route("/login", routes.login_page, methods=read)
    app.router.add_route("/login", routes.login, methods=["POST"])
    app.router.add_route("/logout", routes.logout, methods=["POST"])
    app.router.add_route("/healthz", routes.health, methods=read)
    app.router.add_route("/api/state", routes.state, methods=read)
    app.add_api_route("/api/events", routes.events, methods=["GET"], response_class=EventSourceResponse)
    app.router.add_route("/api/frame/{camera}.jpg", routes.frame, methods=read)
    app.router.add_route("/api/rejects", routes.rejects, methods=read)
    app.router.add_route("/api/rejects/{number:int}.jpg", routes.reject, methods=read)
    app.router.add_route("/api/cameras/{camera}/trigger", routes.trigger, methods=["POST"])
    app.router.add_route("/api/cameras/{camera}/reset", routes.reset, methods=["POST"])
    app.mount("/static", StaticFiles(directory=STATIC))
    return Guard(app, parts.access)


class _Routes:
    def __init__(self, parts: ScreenParts) -> None:
        self._parts = parts
        self._live: LiveState
        self._pictures: PictureMaker
        # A reset may wait for a disk; neither the pictures nor the state may wait with it.
        self._commanding = ThreadPoolExecutor(max_workers=2, thread_name_prefix="snl-web-commands")

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        self._live, self._pictures = self._parts.make_live(), self._parts.make_pictures()
        watching = asyncio.create_task(self._live.watch())
        self._parts.on_start(self._live)
        try:
            yield
        finally:
            watching.cancel()
            self._pictures.close()
            self._commanding.shutdown(wait=False, cancel_futures=True)

    async def page(self, _request: Any) -> Any:
        from starlette.responses import FileResponse

        return FileResponse(STATIC / "index.html")

    async def login_page(self, _request: Any) -> Any:
        from starlette.responses import FileResponse

        return FileResponse(STATIC / "login.html")

    async def login(self, request: Any) -> Any:
        from starlette.responses import RedirectResponse

        form = urllib.parse.parse_qs((await _small_body(request)).decode("utf-8", "replace"))
        if not self._parts.access.is_token(form.get("token", [""])[0].strip()):
            logger.warning("a login with a wrong token from %s", request.client.host if request.client else "unknown")
            return RedirectResponse("/login?wrong", status_code=303)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            COOKIE, self._parts.access.sign_in(), max_age=int(SESSION_S), httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return answer

    async def logout(self, request: Any) -> Any:
        from starlette.responses import RedirectResponse

        self._parts.access.sign_out(request.headers.get("cookie"))
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE)
        return answer

    async def health(self, _request: Any) -> Any:
        # Public, so without the reasons: they name parts and faults.
        is_healthy = self._live.state is not None and bool(self._live.state["healthy"])
        return _json({"status": "inspects" if is_healthy else "does not inspect"}, 200 if is_healthy else 503)

    async def state(self, _request: Any) -> Any:
        return _error(503, _BLIND) if self._live.state is None else _json(self._live.state)

    async def events(self) -> AsyncIterator[Any]:
        from fastapi.sse import ServerSentEvent

        async for name, text in self._live.events():
            yield ServerSentEvent(event=name, raw_data=text)

    async def frame(self, request: Any) -> Any:
        camera = request.path_params["camera"]
        if camera not in self._parts.commands:
            return _error(404, f"no camera '{camera}'; there are {', '.join(self._parts.commands)}")
        return await _picture(self._pictures.live(camera, overlay=_flag(request, "overlay")))

    async def rejects(self, _request: Any) -> Any:
        return _json(self._live.rejects)

    async def reject(self, request: Any) -> Any:
        shot: Shot | None = self._parts.feed.reject(request.path_params["number"])
        if shot is None:
            return _error(404, "that part is no longer kept here; its record is in the store")
        return await _picture(self._pictures.of(shot, overlay=_flag(request, "overlay"), thumbnail=_flag(request, "thumbnail")))

    async def trigger(self, request: Any) -> Any:
        named = await _names(request, ("product", "part_id"))
        if isinstance(named, str):
            return _error(422, named)

        def trigger(commands: LineCommands, _line: Callable[[], LineState]) -> Any:
            return _json({"trigger_id": commands.trigger(product=named.get("product"), part_id=named.get("part_id"))}, 202)

        return await self._command(request, trigger)

    async def reset(self, request: Any) -> Any:
        def reset(commands: LineCommands, line: Callable[[], LineState]) -> Any:
            commands.reset()
            state = line()
            return _error(409, f"the fault stays: {state.fault_reason}") if state.fault else _json({"state": state.state.value})

        return await self._command(request, reset)

    async def _command(self, request: Any, command: Callable[[LineCommands, Callable[[], LineState]], Any]) -> Any:
        camera = request.path_params["camera"]
        commands = self._parts.commands.get(camera)
        if commands is None:
            return _error(404, f"no camera '{camera}'; there are {', '.join(self._parts.commands)}")
        running = asyncio.get_running_loop().run_in_executor(self._commanding, command, commands, lambda: self._parts.line_state(camera))
        try:
            return await asyncio.wait_for(running, COMMAND_TIMEOUT_S)
        except asyncio.TimeoutError:
            return _error(504, f"{camera} has not taken the command within {COMMAND_TIMEOUT_S:g} s; it may still do so")
        except TriggerRefusedError as refused:
            return _error(409, str(refused))
        except SnlError as failure:
            return _error(503, str(failure))


async def _picture(drawing: Any) -> Any:
    from starlette.responses import Response

    try:
        picture: Picture | None = await drawing
    except FrameError as failure:
        return _error(404, f"no image: {failure}")
    if picture is None:
        return _error(404, "no image yet")
    shot = picture.shot
    named = {"X-Number": str(shot.number), "X-Trigger-Id": str(shot.frame.trigger_id or 0), "X-Verdict": shot.result.verdict.value}
    return Response(picture.jpeg, media_type="image/jpeg", headers=named)


async def _small_body(request: Any) -> bytes:
    from starlette.exceptions import HTTPException

    body, received = b"", 0
    async for chunk in request.stream():
        received += len(chunk)
        body += chunk if received <= MOST_BODY_BYTES else b""
        if received > MOST_DISCARDED_BYTES:
            break
    if received > MOST_BODY_BYTES:
        raise HTTPException(413, f"a request may hold at most {MOST_BODY_BYTES} bytes")
    return body


async def _names(request: Any, allowed: tuple[str, ...]) -> dict[str, str] | str:
    """Return the text values of a JSON object, or what is wrong with it; an empty body is an empty object."""
    from snl_runtime.config import parse_json

    body = await _small_body(request)
    if not body:
        return {}
    try:
        named = parse_json(body.decode())
    except (SnlError, UnicodeDecodeError) as failure:
        return f"the body must be a JSON object: {failure}"
    for name, value in named.items():
        if name not in allowed:
            return f"unknown key '{name}'; known are {', '.join(allowed)}"
        if value is not None and not isinstance(value, str):
            return f"{name} must be text, got {type(value).__name__}"
    return {name: value for name, value in named.items() if value}


def _flag(request: Any, name: str) -> bool:
    return request.query_params.get(name, "0") not in ("0", "")


def _json(value: object, status: int = 200) -> Any:
    from starlette.responses import Response

    return Response(to_strict_json(value) + "\n", status_code=status, media_type="application/json")


def _error(status: int, error: str) -> Any:
    return _json({"error": error.replace("\n", " ")}, status)


async def _one_line(_request: Any, failure: Any) -> Any:
    answer = _error(failure.status_code, str(failure.detail))
    answer.headers.update(failure.headers or {})
    return answer


async def _internal_error(_request: Any, _failure: Exception) -> Any:
    return _error(500, "internal error; the station's log says more")
