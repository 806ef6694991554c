"""A progress bar per stage, on stderr."""

from types import TracebackType

from tqdm import tqdm


class StageBars:
    """Call it as `progress(stage, done, total)`: each stage gets a bar of its own, and the finished ones stay visible."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._stage: str | None = None
        self._bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                total=total, desc=stage, disable=self._quiet, bar_format="{desc:<24}{bar:24} {n}/{total} {elapsed}"
            )
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
