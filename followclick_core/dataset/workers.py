"""Steps on Ray Data: a pool of worker processes, on this machine or on a cluster, that takes parts until none is left.

A worker that is killed is replaced and its part begun again; what it had written is either whole or not there. Only
numbers of parts travel through Ray: frames go from the video to a tar within one process.
"""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence

from .params import RunParams
from .steps import Step, StepWorker

OBJECT_STORE_BYTES = 100 << 20  # Ray's least is 75 MiB


@contextlib.contextmanager
def ray_session(params: RunParams) -> Iterator[None]:
    """A Ray of our own with as many processors as workers, or the cluster at an address; left again at the end.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: There is no cluster at the address.
    """
    # Read when Ray is imported. A worker that was killed is no error here: Ray starts another.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _no_native_messages():
        import ray
        from ray.data import DataContext

    options = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    local = {
        "num_cpus": params.workers,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    try:
        with _no_native_messages():
            ray.init(address=params.address or "local", **options, **({} if params.address else local))
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"Ray cannot be reached at {params.address or 'this machine'} ({reason}).") from error
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def run_steps(
    steps: Sequence[Step], parts: Sequence[int], params: RunParams, gpus: float = 0.0
) -> Iterator[tuple[int, str]]:
    """Do steps, one after another, on each part, within a ray_session; yields the parts as they are done.

    With each part comes what went wrong with it, or "".

    Args:
        gpus: Of one worker; a fraction lets several share one.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    if not parts:
        return
    workers = min(params.workers, len(parts))
    rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    done = rows.map(
        StepWorker,  # pyright: ignore[reportArgumentType]  # Ray's annotation leaves classes out
        fn_constructor_args=[list(steps)],
        # One part at a time: a second one waiting behind the first would leave another worker idle at the end.
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    for row in done.iter_rows():
        yield int(row["part"]), str(row["error"])


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
