"""The id of a request: in its answer, and in all lines that are logged on its behalf."""

from __future__ import annotations

from starlette.types import Message, Scope, Send

from prefect_mipro.server.logs import begin_request

# Whose id it is: the caller's or that of the model's server where they tell one, else ours.
ANYONES_HEADER = b"x-request-id"
# As the log has it.
OUR_HEADER = b"x-mipro-request-id"


def named(scope: Scope, send: Send) -> Send:
    """Begin the request of that scope. Its answer, sent by what comes back, carries its id.

    If the header is repeated, the first value is used, as of all headers.
    """
    told = dict(reversed(scope["headers"])).get(ANYONES_HEADER, b"")
    request_id = begin_request(told.decode("latin-1")).encode()

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (OUR_HEADER, request_id)]
            if ANYONES_HEADER not in dict(headers):
                headers.append((ANYONES_HEADER, request_id))
            message["headers"] = headers
        await send(message)

    return send_named
