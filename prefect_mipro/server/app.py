"""The composition root: settings in, an app with its store, upstreams and services out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from threadpoolctl import threadpool_limits

from prefect_mipro import __version__
from prefect_mipro.errors import MiproError
from prefect_mipro.server.garbage import rarely_collected
from prefect_mipro.server.ids import Clock, utc_now
from prefect_mipro.server.request_ids import named
from prefect_mipro.server.routes import (
    candidates,
    docs,
    errors,
    exports,
    health,
    metrics,
    prompt_learning,
    sessions,
)
from prefect_mipro.server.routes.errors import error_response
from prefect_mipro.server.routes.proxy import Proxy
from prefect_mipro.server.routes.same_origin import SameOrigin
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.telemetry.tracing import Tracing
from prefect_mipro.server.telemetry.watch import Telemetry
from prefect_mipro.server.upstream.registry import Upstreams
from prefect_mipro.server.upstreams import upstreams_of
from prefect_mipro.server.wiring import background_work, running, watch, wire

PROXY_GUIDE = """
The proxy is not in the list below: it takes the chat completions of any OpenAI client.

* `POST {online_url}/{rollout_id}/chat/completions` serves the rollout with its candidate. The
  rollout id may also come as header `x-mipro-rollout-id` or query `cid`; without one the backend
  makes one.
* Answers carry the headers `x-mipro-candidate-id` and `x-mipro-rollout-id`, and as
  `x-mipro-request-id` the id under which the log has them.
* `x-mipro-fallback-from` names the candidate whose prompt the model refused before the champion's
  was answered; the rollout is the champion's then.
* `x-mipro-candidate-id` in a request asks for that candidate outside of learning.
* `x-correlation-id` (or query `correlation_id`) and `x-mipro-example-id` (or query `example_id`)
  are kept with the rollout.
* `online_url` holds a secret of its session, so that calls need no key.
"""


def create_app(
    settings: ServerSettings,
    *,
    store: Store | None = None,
    upstreams: Upstreams | None = None,
    tracing: Tracing | None = None,
    clock: Clock = utc_now,
) -> FastAPI:
    """The whole server as an ASGI app. Without `tracing` it makes no spans.

    It opens and closes what is not given: the store of `database_url`, the upstreams of the
    providers. What is given stays the caller's to close.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as opened:
            # Matrices are small here: several threads would spend forty times the CPU on waiting.
            opened.enter_context(threadpool_limits(1, user_api="blas"))
            kept = store
            if kept is None:
                kept = await open_store(settings.database_url)
                opened.push_async_callback(kept.close)
            telemetry = Telemetry(tracing)
            reached = upstreams
            if reached is None:
                reached = upstreams_of(settings, call_headers=telemetry.tracing.call_headers)
                opened.push_async_callback(reached.close)
            backend = wire(settings, kept, reached, telemetry, clock=clock)
            watch(telemetry, backend, kept, reached)
            app.state.backend = backend
            await opened.enter_async_context(running(backend, *background_work(backend)))
            opened.enter_context(rarely_collected())
            yield

    app = _Server(
        SameOrigin(
            listens_on=settings.host,
            public_url=settings.public_url,
            allowed=settings.allowed_hosts,
        ),
        title="prefect-mipro",
        summary="Online prompt optimization: sessions, rewards and the chat-completions proxy.",
        description=PROXY_GUIDE,
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's own pages load their scripts from a third party.
        docs_url=None,
        redoc_url=None,
        # Its own spans and logs would tell paths and faults as they are.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        exception_handlers={
            MiproError: errors.on_mipro_error,
            RequestValidationError: errors.on_validation_error,
            HTTPException: errors.on_http_exception,
            Exception: errors.on_unknown_error,
        },
    )
    for router in (
        health.router,
        metrics.router,
        sessions.session_router(sessions.V1_PREFIX, tag="sessions"),
        sessions.session_router(sessions.PROMPT_LEARNING_PREFIX, tag=prompt_learning.TAG),
        prompt_learning.router,
        candidates.router,
        exports.router,
        docs.router,
    ):
        app.include_router(router)
    return app


class _Server(FastAPI):
    """The API, and before its middleware and routes the proxy, which takes nearly all calls.

    Both come after the check of where a request comes from.
    """

    def __init__(self, same_origin: SameOrigin, **options: Any) -> None:
        super().__init__(**options)
        self._same_origin = same_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            send = named(scope, send)
            if refusal := self._same_origin.refusal(scope):
                await error_response(Request(scope), refusal)(scope, receive, send)
                return
        if Proxy.serves(scope):
            await self._proxy(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    @cached_property
    def _proxy(self) -> Proxy:
        return Proxy(lambda: self.state.backend)
