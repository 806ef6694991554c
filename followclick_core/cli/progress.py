"""A progress bar per stage, on stderr."""

from types import TracebackType

from tqdm import tqdm

LABELS = {
    "load": "loading the model",
    "segment": "finding the object",
    "sample": "sampling",
    "decode": "decoding",
    "measure": "measuring",
    "generate": "generating clips",
    "score": "scoring clips",
    "judge": "comparing pictures",
    "list": "reading the source",
    "clips": "taking clips",
    "motion": "measuring motion",
    "label": "captioning",
    "shards": "packing shards",
}


class StageBars:
    """Call it as `progress(stage, done, total)`: each stage gets a bar of its own; finished ones stay visible."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._stage: str | None = None
        self._bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                desc=LABELS.get(stage, stage),
                # In parts of one, as a stage may find out only on its way how many steps it has.
                total=1.0,
                disable=self._quiet,
                bar_format="{desc:<20}{percentage:3.0f}% |{bar:30}| {elapsed} (about {remaining} left)",
            )
        self._bar.update(done / total - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._bar is not None:
            # Wiped, so that the error's own line stands alone.
            self._bar.leave = False
        self.close()
