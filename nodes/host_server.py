"""The host's HTTP server and its queue of prompts.

A prompt may run in the host's worker thread while a route is answered, and the host's memory management is not made
for two threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from server import PromptServer


class PromptRunsError(RuntimeError):
    """The device is at work for a prompt; the text says so to the user."""


def route_table() -> web.RouteTableDef | None:
    """Where routes are added, before the server starts; None where the pack is loaded without a server."""
    server = getattr(PromptServer, "instance", None)
    return None if server is None else server.routes


@contextmanager
def between_prompts() -> Iterator[None]:
    """No prompt runs, and none starts, before the block ends; it must be short, for the whole queue waits.

    Raises:
        PromptRunsError: One runs.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None:
        yield
        return
    with server.prompt_queue.mutex:
        if server.prompt_queue.currently_running:
            raise PromptRunsError("A prompt is running on the device that the segmenter needs; try again when it ends.")
        yield
