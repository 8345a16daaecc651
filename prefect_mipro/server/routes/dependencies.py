"""What routes share: the services, the key, the limits of bodies, ids and pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import orjson
from fastapi import APIRouter, Depends, Header, Query, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import AfterValidator, BeforeValidator, StringConstraints
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from prefect_mipro.errors import BodyTooLarge, InputInvalid
from prefect_mipro.models.base import ID_CHARACTERS, ID_PATTERN, JsonObject, Record, SessionId
from prefect_mipro.server.logs import REQUEST_ID_HEADER, begin_request
from prefect_mipro.server.routes.errors import REFUSALS, short
from prefect_mipro.server.services.exports import Exports
from prefect_mipro.server.services.imports import Imports
from prefect_mipro.server.services.keys import Keys
from prefect_mipro.server.services.leases import Leases
from prefect_mipro.server.services.proxy_urls import ProxyUrls
from prefect_mipro.server.services.readiness import Readiness
from prefect_mipro.server.services.removal import Removal
from prefect_mipro.server.services.rollouts import Rollouts
from prefect_mipro.server.services.serving import Serving
from prefect_mipro.server.services.sessions import Sessions
from prefect_mipro.server.services.workspaces import Workspaces
from prefect_mipro.server.telemetry.watch import Telemetry

MOST_ITEMS = 1_000
DEEPEST_JSON = 64
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


def _sessions(request: Request) -> Sessions:
    return backend_of(request).sessions


def _rollouts(request: Request) -> Rollouts:
    return backend_of(request).rollouts


def _leases(request: Request) -> Leases:
    return backend_of(request).leases


def _exports(request: Request) -> Exports:
    return backend_of(request).exports


def _imports(request: Request) -> Imports:
    return backend_of(request).imports


def _removal(request: Request) -> Removal:
    return backend_of(request).removal


def _urls(request: Request) -> ProxyUrls:
    return backend_of(request).urls


def _workspace(request: Request) -> str:
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
            begin_request(request.headers.get(REQUEST_ID_HEADER))
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
        if name in named and _is_identifier(named[name]):
            await check(named[name], workspace)


class _ReadRequest(Request):
    """A request whose JSON body has been read and checked."""

    def __init__(self, request: Request, body: bytes) -> None:
        super().__init__(request.scope, request.receive)
        if body:
            _require_json_type(request.headers.get("content-type", ""))
        self._content = body
        self._value = parse_json(body) if body else None

    async def body(self) -> bytes:
        return self._content

    async def json(self) -> Any:
        return self._value


async def read_body(announced: str | None, receive: Receive, *, limit_bytes: int) -> bytes:
    """The whole body, of which the Content-Length is `announced`.

    Raises BodyTooLarge as soon as that is known.
    """
    length = announced or "0"
    if not length.isdecimal() or len(length) > 18 or int(length) > limit_bytes:
        raise BodyTooLarge(_too_large(limit_bytes))
    pieces: list[bytes] = []
    left = limit_bytes
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InputInvalid("the connection ended before the body did", status=400)
        pieces.append(message.get("body", b""))
        left -= len(pieces[-1])
        if left < 0:
            raise BodyTooLarge(_too_large(limit_bytes))
        more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def parse_json(body: bytes) -> Any:
    """The JSON value: no NaN, no broken Unicode, at most 64 levels deep. Raises InputInvalid."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputInvalid(f"the body is not valid JSON: {error}", status=400) from None
    # Each level opens a bracket, so that most bodies need no walk.
    if body.count(b"{") + body.count(b"[") > DEEPEST_JSON and _depth_exceeds(value, DEEPEST_JSON):
        raise InputInvalid(f"the body is nested more than {DEEPEST_JSON} levels deep", status=400)
    return value


def identifier(name: str, value: str) -> str:
    """The id, if paths can carry it. Raises InputInvalid."""
    if not _is_identifier(value):
        raise InputInvalid(
            f"{name} is {short(repr(value))}; an id has at most {ID_CHARACTERS} characters out of "
            "A-Z a-z 0-9 _ . : ~ - and begins with a letter or digit"
        )
    return value


def short_text(name: str, value: str) -> str:
    """A word of the caller's own, if it is printable and not too long. Raises InputInvalid."""
    if len(value) > ID_CHARACTERS or not value.isprintable():
        raise InputInvalid(
            f"{name} is {short(repr(value))}; it may have {ID_CHARACTERS} printable characters"
        )
    return value


_ID = re.compile(ID_PATTERN.rstrip("$"))


def _is_identifier(value: str) -> bool:
    return len(value) <= ID_CHARACTERS and bool(_ID.fullmatch(value))


def _require_json_type(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise InputInvalid(
            f"the body's Content-Type is {short(repr(content_type))}; send application/json",
            status=415,
        )


def _too_large(limit_bytes: int) -> str:
    return (
        f"the body is larger than {limit_bytes} bytes; send less, "
        "or start the server with a larger --max-body-bytes"
    )


def _depth_exceeds(value: Any, levels: int) -> bool:
    """Walks level by level, so that its own depth does not grow with the value's."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
