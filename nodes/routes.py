"""The click editor's routes under /followclick/; the host serves them under /api/followclick/ too.

ComfyUI asks nobody who they are, and any page in the user's browser can reach it. So: JSON alone, declared as such,
which a page of another origin may not send; names, never paths; and a bound on everything.
"""

import json

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from ..followclick_core.data.verbs import VERBS
from .host_pictures import ForbiddenError
from .host_server import PromptRunsError, route_table
from .live_masks import CrowdedError, SupersededError, live_masks
from .live_request import MAX_BODY, parse_request

RETRY_AFTER_SECONDS = 1


class _RefusedError(Exception):
    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def add_routes() -> None:
    """Add the routes to the host's server, if there is one."""
    if (table := route_table()) is not None:
        table.post("/followclick/segment")(segment)
        table.get("/followclick/verbs")(verbs)


async def segment(request: web.Request) -> web.Response:
    """The masks of the clicks in the body, as a PNG whose bits are described in a header; 204 where there is none."""
    try:
        answer = await live_masks(parse_request(await _json_body(request)))
    except _RefusedError as error:
        return _error(error.status, error)
    except ForbiddenError as error:
        return _error(403, error)
    except FileNotFoundError as error:
        return _error(404, error)
    except ValueError as error:
        return _error(400, error)
    except SupersededError as error:
        return _error(409, error)
    except (PromptRunsError, CrowdedError) as error:
        return _error(503, error, {"Retry-After": str(RETRY_AFTER_SECONDS)})
    if answer is None:
        return web.Response(status=204)
    headers = {"X-FollowClick-Objects": json.dumps(answer.objects), "Cache-Control": "no-store"}
    return web.Response(body=answer.png, content_type="image/png", headers=headers)


async def verbs(request: web.Request) -> web.Response:
    """The verbs that the embedded model was trained on."""
    return web.json_response({"verbs": list(VERBS)})


async def _json_body(request: web.Request) -> bytes:
    # Forms and plain text are what a page of another origin may send without asking first.
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise _RefusedError(415, "The request is declared as something else; send plain application/json.")
    body = b""
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY:
                raise _RefusedError(413, f"The request is too long; send at most {MAX_BODY} bytes.")
    except (ConnectionError, ClientError, HttpProcessingError) as error:
        raise _RefusedError(400, "The request broke off; send it again.") from error
    return body


def _error(status: int, error: Exception, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": str(error)}, status=status, headers=headers)
