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
from prefect_mipro.server.routes.dependencies import Backend
from prefect_mipro.server.routes.errors import error_response
from prefect_mipro.server.routes.proxy import Proxy
from prefect_mipro.server.routes.same_origin import SameOrigin
from prefect_mipro.server.services.assignment import Assignments
from prefect_mipro.server.services.beliefs import Beliefs
from prefect_mipro.server.services.exports import Exports
from prefect_mipro.server.services.forgetting import Forgetting
from prefect_mipro.server.services.identity import Clock, new_id, new_secret, utc_now
from prefect_mipro.server.services.imports import Imports
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.keys import Keys
from prefect_mipro.server.services.knowledge import Knowledge
from prefect_mipro.server.services.leases import Leases
from prefect_mipro.server.services.live import Live
from prefect_mipro.server.services.looks import Looks
from prefect_mipro.server.services.periodic import Periodic
from prefect_mipro.server.services.promotion import Promotion
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.proxy_urls import ProxyUrls
from prefect_mipro.server.services.readiness import Readiness
from prefect_mipro.server.services.recording import Recorder
from prefect_mipro.server.services.redaction import Redaction
from prefect_mipro.server.services.removal import FINISH_SECONDS, Removal
from prefect_mipro.server.services.retention import SWEEP_SECONDS, Retention
from prefect_mipro.server.services.reviews import Reviews
from prefect_mipro.server.services.rollouts import Rollouts
from prefect_mipro.server.services.serving import Serving
from prefect_mipro.server.services.sessions import Sessions
from prefect_mipro.server.services.workspaces import Workspaces
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.telemetry.parts import JournalCollector, UpstreamCollector
from prefect_mipro.server.telemetry.tracing import Tracing
from prefect_mipro.server.telemetry.watch import Telemetry
from prefect_mipro.server.upstream.registry import Upstreams
from prefect_mipro.server.upstreams import upstreams_of
from prefect_mipro.transport import is_loopback

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
            app.state.backend = _backend(settings, kept, reached, telemetry, opened, clock=clock)
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


def _backend(
    settings: ServerSettings,
    store: Store,
    upstreams: Upstreams,
    telemetry: Telemetry,
    opened: AsyncExitStack,
    *,
    clock: Clock,
) -> Backend:
    knowledge = Knowledge(store)
    live = Live(store, knowledge)
    opened.push_async_callback(live.close)
    journal = Journal(store, most_calls_in_flight=settings.max_calls_in_flight)
    telemetry.meters.watch(JournalCollector(journal))
    telemetry.meters.watch(UpstreamCollector(upstreams.counts))
    telemetry.meters.watch_store(store.overview)
    beliefs = Beliefs(store, knowledge)
    promotion = Promotion(store, knowledge, beliefs, clock=clock)
    proposals = Proposals(
        store,
        upstreams,
        knowledge,
        beliefs,
        journal,
        telemetry=telemetry,
        clock=clock,
        new_id=new_id,
    )
    opened.push_async_callback(proposals.close)
    retention = Retention(
        store,
        live,
        traces_days=settings.trace_retention_days,
        rollouts_days=settings.rollout_retention_days,
        clock=clock,
    )
    removal = Removal(store)
    redaction = Redaction(settings.trace_content)
    forgetting = Forgetting(
        store,
        knowledge,
        live,
        beliefs,
        proposals,
        journal,
        clock=clock,
        new_id=new_id,
    )
    for periodic in (
        Periodic("retention", retention.sweep, every_seconds=SWEEP_SECONDS),
        Periodic("deletions", removal.finish, every_seconds=FINISH_SECONDS),
        Periodic("forgetting", forgetting.finish, every_seconds=FINISH_SECONDS),
    ):
        opened.push_async_callback(periodic.close)
        periodic.begin()
    recorder = Recorder(store, journal, redaction, clock=clock, new_id=new_id)
    assignments = Assignments(store, knowledge, live, beliefs, promotion, journal, clock=clock)
    looks = Looks(live, promotion, journal)
    serving = Serving(
        upstreams, knowledge, live, assignments, journal, recorder, looks, new_id=new_id
    )
    opened.push_async_callback(journal.close)
    opened.push_async_callback(looks.close)
    rollouts = Rollouts(
        store,
        live,
        looks,
        proposals,
        redaction,
        telemetry=telemetry,
        clock=clock,
        new_id=new_id,
    )
    urls = ProxyUrls(
        store,
        live,
        public_url=settings.public_url or settings.own_url,
        clock=clock,
        new_secret=new_secret,
    )
    sessions = Sessions(
        store,
        upstreams,
        knowledge,
        live,
        beliefs,
        promotion,
        proposals,
        journal,
        redaction,
        urls,
        clock=clock,
        new_id=new_id,
    )
    return Backend(
        sessions=sessions,
        serving=serving,
        rollouts=rollouts,
        leases=Leases(
            store, knowledge, sessions, serving, rollouts, recorder, clock=clock, new_id=new_id
        ),
        exports=Exports(store, journal, clock=clock),
        imports=Imports(store, upstreams, redaction, clock=clock, new_secret=new_secret),
        removal=removal,
        forgetting=forgetting,
        reviews=Reviews(store, beliefs, proposals, clock=clock, new_id=new_id),
        readiness=Readiness(store, upstreams),
        urls=urls,
        keys=Keys(store, settings.api_keys, open_to_all=is_loopback(settings.host)),
        workspaces=Workspaces(store, live, knowledge),
        max_body_bytes=settings.max_body_bytes,
        telemetry=telemetry,
        public_metrics=settings.public_metrics,
    )
