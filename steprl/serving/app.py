"""The server: OpenAI's endpoints in front of one model, for this machine or behind a token.

Requests are answered one at a time, in order; those that wait cost nothing. The event loop never
waits for the model, nor for the tokens of a prompt. A client that leaves ends its reply.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from steprl.serving.access import Guard, check_exposure
from steprl.serving.answering import Served, Tally, Work, check_work, replies, whole_answer
from steprl.serving.bodies import Bodies
from steprl.serving.connections import Limits
from steprl.serving.fields import ApiError, parse_json
from steprl.serving.protocol import Chat, Completion, read_chat, read_completion
from steprl.serving.responses import chunk_choice
from steprl.serving.text import Delta

_LEFT = 499  # the client has disconnected and will not read it
# A body that was not read to its end would be taken for the next request.
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},
    413: {"Connection": "close"},
    503: {"Connection": "close", "Retry-After": "1"},
}


def make_app(
    served: Served,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    report: Callable[[str], None] = lambda line: None,
    limits: Limits | None = None,
) -> Any:
    """The FastAPI application.

    Args:
        served: the model.
        host: where it will listen. Without a token, requests to another name than this machine's are
            refused, so that no web page reaches the model through a name of its own.
        token: if there is one, each request needs it as `Authorization: Bearer TOKEN`.
        report: is given one line an answer.
        limits: of requests, those of connections excepted: see `server_config`.

    Raises:
        ValueError: a host that others reach, and no token; or one that HTTP cannot carry.
        ImportError: `pip install 'steprl[serve]'` is missing.
    """
    check_exposure(host, token)
    try:
        from anyio import CapacityLimiter
        from anyio.to_thread import run_sync
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response, StreamingResponse
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
    except ImportError as error:
        raise ImportError(f"{error}; serving needs `pip install 'steprl[serve]'`") from error

    app = FastAPI(title="steprl", docs_url=None, redoc_url=None, openapi_url=None)
    bodies, in_progress = Bodies(limits or Limits()), 0
    turn, tokenizing, started = asyncio.Lock(), CapacityLimiter(1), int(time.time())
    description = {
        "id": served.name,
        "object": "model",
        "created": started,
        "owned_by": "steprl",
        "max_model_len": served.engine.context_length,
    }

    def refuse(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, _HEADERS.get(error.status))

    @contextlib.asynccontextmanager
    async def counted() -> AsyncGenerator[None, None]:
        nonlocal in_progress
        in_progress += 1
        try:
            yield
        finally:
            in_progress -= 1

    async def pull(work: Work) -> AsyncGenerator[tuple[int, Delta], None]:
        """Deltas, made in a thread; waits for its turn, and gives it back however it ends."""
        async with counted(), turn:
            deltas = replies(served, work)
            start, tokens = time.perf_counter(), 0
            try:
                # A cancelled call is waited for, so that no other request finds the engine busy.
                while (item := await run_sync(next, deltas, None)) is not None:
                    tokens += len(item[1].piece.ids)
                    yield item
            finally:
                with contextlib.suppress(ValueError):  # the thread still runs: the program ends
                    deltas.close()
                seconds = time.perf_counter() - start
                prompt_tokens = sum(map(len, work.prompts))
                report(f"{work.head.id}  prompt {prompt_tokens}  reply {tokens}  {seconds:.2f} s")

    async def events(work: Work) -> AsyncGenerator[str, None]:
        tally, offsets = Tally(work), {}  # type: ignore[var-annotated]
        head, options = work.head.fields(chunk=True), work.options
        try:
            async with contextlib.aclosing(pull(work)) as deltas:
                async for index, delta in deltas:
                    tally.add(index, delta)
                    first, offset = index not in offsets, offsets.get(index, 0)
                    if not (delta.text or delta.piece.ids or delta.finish):
                        continue
                    offsets[index] = offset + sum(map(len, map(served.token_text, delta.piece.ids)))
                    part = chunk_choice(
                        work.head, index, delta, options, served.token_text, offset, first
                    )
                    yield _event({**head, "choices": [part]})
        except Exception as error:  # the status was sent already
            report(f"{work.head.id}  failed: {type(error).__name__}: {error}")
            yield _event(ApiError(500, f"The reply failed: {type(error).__name__}.").body())
            return
        if options.include_usage:
            yield _event({**head, "choices": [], "usage": tally.usage()})
        yield "data: [DONE]\n\n"

    class EventStream(StreamingResponse):
        """Closes its source however it ends, so that the next request has its turn."""

        media_type = "text/event-stream"

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var]
                await super().__call__(scope, receive, send)

    async def answer(request: Request, read: Callable[[Any], Chat | Completion]) -> Response:
        try:
            body = await bodies.read(request)
        except ClientDisconnect:
            return Response(status_code=_LEFT)
        if in_progress >= bodies.limits.requests:
            raise ApiError(503, f"{in_progress} requests are waiting already: try again later.")
        work = await run_sync(
            lambda: check_work(served, read(parse_json(body, "body"))), limiter=tokenizing
        )
        if work.options.stream:
            return EventStream(events(work), headers={"Cache-Control": "no-store"})

        async def collect() -> list[tuple[int, Delta]]:
            async with contextlib.aclosing(pull(work)) as deltas:
                return [item async for item in deltas]

        try:
            deltas = await _unless_left(request, collect)
            if deltas is None:
                return Response(status_code=_LEFT)
            return JSONResponse(whole_answer(served, work, deltas))
        except Exception as error:  # if raised further, it would end the connection
            report(f"{work.head.id}  failed: {type(error).__name__}: {error}")
            return refuse(ApiError(500, f"The reply failed: {type(error).__name__}."))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(request, read_chat)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, read_completion)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [description]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != served.name:
            raise ApiError(
                404, f"The model {name[:200]!r} is not here.", "model_not_found", "model"
            )
        return description

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return refuse(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        text = f"{error.detail}: {request.method} {request.url.path}"
        return refuse(ApiError(error.status_code, text, "unknown_url"))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        report(f"failed: {type(error).__name__}: {error}")
        return refuse(ApiError(500, f"The reply failed: {type(error).__name__}."))

    app.add_middleware(Guard, token=token, refuse=refuse)
    return app


async def _unless_left(request: Any, work: Callable[[], Any]) -> Any:
    """The result of the work; None if the client left before, and the work was ended."""
    import anyio

    result, problem = None, None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while not await request.is_disconnected():
                await anyio.sleep(0.1)
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            result = await work()
        except Exception as error:  # would leave the group inside an ExceptionGroup
            problem = error
        group.cancel_scope.cancel()
    if problem is not None:
        raise problem
    return result


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
