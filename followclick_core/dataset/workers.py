"""Steps on Ray Data: a pool of worker processes, on this machine or on a cluster, that takes parts until none is left.

A worker that is killed is replaced and its part begun again; what it had written is either whole or not there. Only
numbers of parts travel through Ray: frames go from the video to a tar within one process.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from .params import RunParams
from .steps import Step, StepWorker

CONNECT_SECONDS = 10
OBJECT_STORE_BYTES = 100 << 20  # Ray's least is 75 MiB


class WorkerPool(contextlib.AbstractContextManager):
    """Workers in a Ray of our own, with as many processors as workers, or in the cluster at an address.

    Ray is started by the first work there is, so a build that has all its parts takes no time, and is left at the end.
    """

    def __init__(self, params: RunParams):
        self._params = params
        self._started = False

    def __exit__(self, *_: object) -> None:
        if self._started:
            import ray

            ray.shutdown()

    def run(self, steps: Sequence[Step], parts: Sequence[int], gpus: float = 0.0) -> Iterator[tuple[int, str]]:
        """Do steps, one after another, on each part; yields the parts as they are done, with what went wrong, or "".

        Args:
            gpus: Of one worker; a fraction lets several share one.

        Raises:
            ValueError: There is no cluster at the address.
        """
        if not parts:
            return
        if not self._started:
            _start_ray(self._params)
            self._started = True
        import ray.data
        from ray.data import ActorPoolStrategy

        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        done = rows.map(
            StepWorker,  # pyright: ignore[reportArgumentType]  # Ray's annotation leaves classes out
            fn_constructor_args=[list(steps)],
            # One part at a time: a second one waiting behind the first would leave another worker idle at the end.
            compute=ActorPoolStrategy(size=min(self._params.workers, len(parts)), max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        for row in done.iter_rows():
            yield int(row["part"]), str(row["error"])


def _start_ray(params: RunParams) -> None:
    # Read when Ray is imported. A worker that was killed is no error here: Ray starts another.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if params.address:
        _require_listener(params.address)
    where: dict[str, Any] = {"address": params.address or "local"}
    if not params.address:
        where |= {"num_cpus": params.workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        with _no_native_messages(), _own_signals():
            import ray
            from ray.data import DataContext

            ray.init(logging_level=logging.ERROR, log_to_driver=False, **where)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"Ray cannot be reached at {params.address or 'this machine'} ({reason}).") from error
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _require_listener(address: str) -> None:
    """Raise ValueError if nobody listens at HOST:PORT; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{address!r} is no address of a Ray cluster; give HOST:PORT, such as 10.0.0.1:6379.")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"Ray cannot be reached at {address} ({error}); start it there, or name another.") from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which ends the process before its files are in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _no_native_messages() -> Iterator[None]:
    """Ray's own process starts with a line on stderr that says which log level it was told."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def require_packages() -> None:
    """Raise ModuleNotFoundError for the first package of the extra `dataset` that is not installed."""
    for name in ("ray", "webdataset", "scenedetect", "openai", "jsonschema"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
