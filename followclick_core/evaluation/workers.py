"""A function over many items, in this process or shared among several."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_workers(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """The function of each item, in order. With more than one worker it and the items must be picklable.

    Items are taken from their iterator only as workers become free, so few of them are in memory.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    items = iter(items)
    # Spawned: a forked process would inherit the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(function,)) as pool:
        waiting: list[Future[Any]] = [pool.submit(_call, item) for item in islice(items, 2 * workers)]
        try:
            while waiting:
                result = waiting.pop(0).result()
                waiting += [pool.submit(_call, item) for item in islice(items, 1)]
                yield result
        finally:
            for future in waiting:
                future.cancel()


_function: Callable[[Any], Any]


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    import cv2
    import torch

    # The workers are what shares the cores; optical flow by a thread for each core in each of them only waits.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _function = function


def _call(item: Any) -> Any:
    return _function(item)
