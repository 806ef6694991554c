"""The host's HTTP server and its queue of prompts.

The host's worker thread runs a prompt, or unloads models, while a route is answered; and the host's memory management
is not made for two threads: a list of models that changes under its hands ends the worker for good.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from execution import PromptQueue
from server import PromptServer

TIDYING_SECONDS = 2.0  # what a route's thread waits for the worker to tidy up after a prompt


class PromptRunsError(RuntimeError):
    """The host's worker is not idle; the text says so to the user."""


def route_table() -> web.RouteTableDef | None:
    """Where routes are added, before the server starts; None where the pack is loaded without a server."""
    server = getattr(PromptServer, "instance", None)
    return None if server is None else server.routes


@contextmanager
def between_prompts() -> Iterator[None]:
    """The host's worker waits for a prompt, and gets none before the block ends; it must be short.

    Raises:
        PromptRunsError: The worker runs a prompt, or tidies up after one.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None:
        yield
        return
    with server.prompt_queue.mutex:
        if not _worker_waits(server.prompt_queue):
            raise PromptRunsError("A prompt is running on the device that the segmenter needs; try again when it ends.")
        yield


def wait_for_tidying() -> None:
    """Return when the host's worker waits for a prompt, or has one to run, or takes longer than TIDYING_SECONDS.

    The host says that a prompt is done before it unloads what it was asked to and collects garbage; who clicks at that
    moment should not be sent away. Not for the event loop's thread, and not under a lock that unloading a model takes.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None or not hasattr(server.prompt_queue.not_empty, "_waiters"):
        return
    queue, deadline = server.prompt_queue, time.monotonic() + TIDYING_SECONDS
    while time.monotonic() < deadline:
        with queue.mutex:
            if _worker_waits(queue) or queue.currently_running or queue.queue:
                return
        time.sleep(0.02)


def _worker_waits(queue: PromptQueue) -> bool:
    """Whether the worker sleeps in the queue; to know it, the queue's lock must be held, without which it cannot wake.

    That no prompt is running says too little, for models are unloaded between prompts. Where Python does not tell who
    waits, the worker counts as busy.
    """
    return bool(getattr(queue.not_empty, "_waiters", ()))
