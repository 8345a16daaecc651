"""What routes share: the services, the key, the limits of pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, Header, Query, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import AfterValidator, BeforeValidator, StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from prefect_mipro.models.base import ID_CHARACTERS, JsonObject, Record, SessionId
from prefect_mipro.models.names import is_identifier
from prefect_mipro.server.routes.bodies import parse_json, read_body, require_json_type
from prefect_mipro.server.routes.errors import REFUSALS
from prefect_mipro.server.services.access import Keys, ProxyUrls, Workspaces
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.leases import Leases
from prefect_mipro.server.services.privacy import Retention
from prefect_mipro.server.services.promotion import Promotion
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.readiness import Readiness
from prefect_mipro.server.services.removal import Forgetting, Removal
from prefect_mipro.server.services.reviews import Reviews
from prefect_mipro.server.services.rewards import PromotionChecks, Rollouts
from prefect_mipro.server.services.serving import Serving
from prefect_mipro.server.services.session_cache import SessionCache
from prefect_mipro.server.services.sessions import Sessions
from prefect_mipro.server.services.transfer import Exports, Imports
from prefect_mipro.server.telemetry.watch import Telemetry

MOST_ITEMS = 1_000
LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Backend:
    """The services behind the routes, and what guards the way to them."""

    sessions: Sessions
    serving: Serving
    rollouts: Rollouts
    leases: Leases
    exports: Exports
    imports: Imports
    removal: Removal
    forgetting: Forgetting
    retention: Retention
    reviews: Reviews
    promotion: Promotion
    proposals: Proposals
    checks: PromotionChecks
    journal: Journal
    live: SessionCache
    readiness: Readiness
    urls: ProxyUrls
    keys: Keys
    workspaces: Workspaces
    max_body_bytes: int
    telemetry: Telemetry
    public_metrics: bool


def backend_of(request: Request) -> Backend:
    """The backend that the composition root has put behind this app."""
    backend: Backend = request.app.state.backend
    return backend


# FastAPI would call plain functions in a thread, each time.
async def _sessions(request: Request) -> Sessions:
    return backend_of(request).sessions


async def _rollouts(request: Request) -> Rollouts:
    return backend_of(request).rollouts


async def _leases(request: Request) -> Leases:
    return backend_of(request).leases


async def _exports(request: Request) -> Exports:
    return backend_of(request).exports


async def _imports(request: Request) -> Imports:
    return backend_of(request).imports


async def _removal(request: Request) -> Removal:
    return backend_of(request).removal


async def _forgetting(request: Request) -> Forgetting:
    return backend_of(request).forgetting


async def _reviews(request: Request) -> Reviews:
    return backend_of(request).reviews


async def _urls(request: Request) -> ProxyUrls:
    return backend_of(request).urls


async def _workspace(request: Request) -> str:
    workspace: str = request.state.workspace
    return workspace


# Pydantic would take one as a time of Unix, in seconds or milliseconds by its size.
_NUMBER = re.compile(r"\s*[-+]?[0-9.]+\s*")


def _clamped(limit: int) -> int:
    return min(max(limit, 1), MOST_ITEMS)


def _not_a_number(moment: object) -> object:
    if isinstance(moment, str) and _NUMBER.fullmatch(moment):
        raise ValueError("send a date and a time, such as 2027-01-31T12:00:00Z")
    return moment


def _with_zone(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


SessionsOf = Annotated[Sessions, Depends(_sessions)]
RolloutsOf = Annotated[Rollouts, Depends(_rollouts)]
LeasesOf = Annotated[Leases, Depends(_leases)]
ExportsOf = Annotated[Exports, Depends(_exports)]
ImportsOf = Annotated[Imports, Depends(_imports)]
RemovalOf = Annotated[Removal, Depends(_removal)]
ForgettingOf = Annotated[Forgetting, Depends(_forgetting)]
ReviewsOf = Annotated[Reviews, Depends(_reviews)]
UrlsOf = Annotated[ProxyUrls, Depends(_urls)]
CallersWorkspace = Annotated[str, Depends(_workspace)]
CandidateId = SessionId
Limit = Annotated[int, Query(description="1 to 1000"), AfterValidator(_clamped)]
Moment = Annotated[datetime, BeforeValidator(_not_a_number), AfterValidator(_with_zone)]
Integer = Annotated[int, Query(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)]
Cursor = Annotated[str | None, Query(max_length=1_000, description="next_cursor of the last page")]
RequestKey = Annotated[
    Annotated[str, StringConstraints(max_length=ID_CHARACTERS)] | None,
    Header(alias="Idempotency-Key", description="the same in each repeat of one request"),
]


class Listing(Record):
    """One page of a list."""

    items: list[JsonObject]
    next_cursor: str | None = None


def offered_keys(authorization: str | None, api_key: str | None) -> tuple[str, str]:
    """The keys in `Authorization: Bearer` and `X-API-Key`, empty where there is none."""
    scheme, _, bearer = (authorization or "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else "", api_key or ""


async def callers_workspace(request: Request) -> str:
    """The workspace of the key that came with the request. Raises KeyRejected."""
    headers = request.headers
    offered = offered_keys(headers.get("authorization"), headers.get("x-api-key"))
    return await backend_of(request).keys.workspace_of(*offered)


def api_router(prefix: str, *, tag: str) -> APIRouter:
    """A router of the API, whose routes ask for a key and read bounded JSON.

    What the path names, `{session_id}` or `{candidate_id}`, must be of the key's workspace.
    """
    bearer = HTTPBearer(auto_error=False, description="one of the server's keys, if it has any")
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        route_class=ApiRoute,
        dependencies=[Security(bearer)],
        responses=REFUSALS,
    )


class ApiRoute(APIRoute):
    """The key is checked before the body is read, and the body before it is validated."""

    # Whether it may make what its path names, so that this need not be there.
    makes_session: ClassVar[bool] = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        respond = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            backend = backend_of(request)
            workspace = request.state.workspace = await callers_workspace(request)
            if not self.makes_session:
                await _check_path(backend.workspaces, request.path_params, workspace)
            body = await read_body(
                request.headers.get("content-length"),
                request.receive,
                limit_bytes=backend.max_body_bytes,
            )
            with backend.telemetry.tracing.continued(request.scope["headers"]):
                return await respond(_ReadRequest(request, body))

        return guarded


class SessionMakingRoute(ApiRoute):
    """One that looks by itself whether the session it is to make is another workspace's."""

    makes_session = True


async def _check_path(workspaces: Workspaces, named: Mapping[str, str], workspace: str) -> None:
    """Raise what is raised for unknown ids, unless all in the path are of the workspace."""
    for name, check in (
        ("session_id", workspaces.check_session),
        ("candidate_id", workspaces.check_candidate),
    ):
        # What is no id is refused by the route, which says why.
        if name in named and is_identifier(named[name]):
            await check(named[name], workspace)


class _ReadRequest(Request):
    """A request whose JSON body has been read and checked."""

    def __init__(self, request: Request, body: bytes) -> None:
        super().__init__(request.scope, request.receive)
        if body:
            require_json_type(request.headers.get("content-type", ""))
        self._content = body
        self._value = parse_json(body) if body else None

    async def body(self) -> bytes:
        return self._content

    async def json(self) -> Any:
        return self._value
