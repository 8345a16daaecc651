"""The wiring: each service with what it needs, built in the order of those needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from prefect_mipro.server.ids import Clock, NewId, new_id, new_secret, utc_now
from prefect_mipro.server.periodic import Periodic
from prefect_mipro.server.routes.dependencies import Backend
from prefect_mipro.server.services.access import Keys, ProxyUrls, Workspaces
from prefect_mipro.server.services.assignment import Assignments
from prefect_mipro.server.services.beliefs import Beliefs
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.leases import Leases
from prefect_mipro.server.services.privacy import SWEEP_SECONDS, Redaction, Retention
from prefect_mipro.server.services.promotion import GIVE_UP_SECONDS, Promotion
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.readiness import Readiness
from prefect_mipro.server.services.recording import Recorder
from prefect_mipro.server.services.removal import FINISH_SECONDS, Forgetting, Removal
from prefect_mipro.server.services.reviews import Reviews
from prefect_mipro.server.services.rewards import PromotionChecks, Rollouts
from prefect_mipro.server.services.serving import Serving
from prefect_mipro.server.services.session_cache import PromptCache, SessionCache
from prefect_mipro.server.services.sessions import Sessions
from prefect_mipro.server.services.transfer import Exports, Imports
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.telemetry.parts import JournalCollector, UpstreamCollector
from prefect_mipro.server.telemetry.watch import Telemetry
from prefect_mipro.server.upstream.registry import Upstreams
from prefect_mipro.transport import is_loopback


def wire(
    settings: ServerSettings,
    store: Store,
    upstreams: Upstreams,
    telemetry: Telemetry,
    *,
    clock: Clock = utc_now,
    new_id: NewId = new_id,
    new_secret: Callable[[], str] = new_secret,
) -> Backend:
    """All services of one server. Nothing runs yet: see `running`."""
    prompts = PromptCache(store)
    live = SessionCache(store, prompts)
    journal = Journal(store, most_calls_in_flight=settings.max_calls_in_flight)
    beliefs = Beliefs(store, prompts)
    redaction = Redaction(settings.trace_content)
    recorder = Recorder(store, journal, redaction, clock=clock, new_id=new_id)

    promotion = Promotion(store, prompts, beliefs, clock=clock)
    checks = PromotionChecks(live, promotion, journal)
    proposals = Proposals(
        *(store, upstreams, prompts, beliefs, journal),
        telemetry=telemetry,
        clock=clock,
        new_id=new_id,
    )

    assignments = Assignments(store, prompts, live, beliefs, promotion, journal, clock=clock)
    serving = Serving(
        *(upstreams, prompts, live, assignments, journal, recorder, checks), new_id=new_id
    )
    rollouts = Rollouts(
        *(store, live, checks, proposals, redaction, journal),
        telemetry=telemetry,
        clock=clock,
        new_id=new_id,
    )
    urls = ProxyUrls(
        *(store, live),
        public_url=settings.public_url or settings.own_url,
        clock=clock,
        new_secret=new_secret,
    )
    sessions = Sessions(
        *(store, upstreams, prompts, live, beliefs, proposals, journal, redaction, urls),
        clock=clock,
        new_id=new_id,
    )
    return Backend(
        sessions=sessions,
        serving=serving,
        rollouts=rollouts,
        leases=Leases(
            *(store, prompts, sessions, serving, rollouts, recorder), clock=clock, new_id=new_id
        ),
        exports=Exports(store, journal, clock=clock),
        imports=Imports(store, upstreams, redaction, clock=clock, new_secret=new_secret),
        removal=Removal(store),
        forgetting=Forgetting(
            *(store, prompts, live, beliefs, proposals, journal), clock=clock, new_id=new_id
        ),
        retention=Retention(
            *(store, live),
            traces_days=settings.trace_retention_days,
            rollouts_days=settings.rollout_retention_days,
            clock=clock,
        ),
        reviews=Reviews(store, beliefs, proposals, clock=clock, new_id=new_id),
        promotion=promotion,
        proposals=proposals,
        checks=checks,
        journal=journal,
        live=live,
        readiness=Readiness(store, upstreams),
        urls=urls,
        keys=Keys(store, settings.api_keys, open_to_all=is_loopback(settings.host)),
        workspaces=Workspaces(store, live, prompts),
        max_body_bytes=settings.max_body_bytes,
        telemetry=telemetry,
        public_metrics=settings.public_metrics,
    )


def watch(telemetry: Telemetry, backend: Backend, store: Store, upstreams: Upstreams) -> None:
    """Have the metrics show what the journal, the upstreams and the database hold."""
    telemetry.meters.watch(JournalCollector(backend.journal))
    telemetry.meters.watch(UpstreamCollector(upstreams.counts))
    telemetry.meters.watch_store(store.overview)


def background_work(backend: Backend) -> tuple[Periodic, ...]:
    """What a server does by itself, beside answering requests."""
    return (
        Periodic("retention", backend.retention.sweep, every_seconds=SWEEP_SECONDS),
        Periodic("deletions", backend.removal.finish, every_seconds=FINISH_SECONDS),
        Periodic("forgetting", backend.forgetting.finish, every_seconds=FINISH_SECONDS),
        Periodic(
            "missing rewards", backend.promotion.give_up_overdue, every_seconds=GIVE_UP_SECONDS
        ),
    )


@asynccontextmanager
async def running(backend: Backend, *work: Periodic) -> AsyncIterator[Backend]:
    """The backend with that work going on in the background, and an end in good order."""
    async with AsyncExitStack() as opened:
        opened.push_async_callback(backend.live.close)
        opened.push_async_callback(backend.proposals.close)
        for periodic in work:
            opened.push_async_callback(periodic.close)
            periodic.begin()
        opened.push_async_callback(backend.journal.close)
        opened.push_async_callback(backend.checks.close)
        yield backend
