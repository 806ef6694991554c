"""A second pack for the tests' server: small random models of the host's own classes, and a look inside a sampling.

The nodes stand for what a user has and nobody can ship here: a Stable Diffusion 1.5 MODEL and CLIP, smaller or of the
true widths. The routes tell what only the server's process knows.
"""

from aiohttp import web
from server import PromptServer

from .models import RandomClip, RandomModel
from .watching import (
    FailOnce,
    InterruptAtStep,
    NoVideoMemory,
    ShortOfMemory,
    WatchCalls,
    memory_bytes,
    modules_with_hooks,
    watched,
)

NODE_CLASS_MAPPINGS = {
    f"Testing_{kind.__name__}": kind
    for kind in (RandomModel, RandomClip, WatchCalls, ShortOfMemory, NoVideoMemory, InterruptAtStep, FailOnce)
}

_routes = PromptServer.instance.routes


@_routes.get("/testing/calls")
async def calls(_request: web.Request) -> web.Response:
    """The UNet calls since the last request: frames and latents in each, and the entries they are for."""
    answer = list(watched)
    watched.clear()
    return web.json_response(answer)


@_routes.get("/testing/hooks")
async def hooks(_request: web.Request) -> web.Response:
    """The classes of all live modules with a forward hook."""
    return web.json_response(modules_with_hooks())


@_routes.get("/testing/memory")
async def memory(_request: web.Request) -> web.Response:
    """Resident bytes of the process."""
    return web.json_response(memory_bytes())
