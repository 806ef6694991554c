"""The stage that the loop runs on shards: this rank's share of every batch, in micro-batches."""

from collections.abc import Iterator

from torch import Tensor

from .clip_data import ClipData, Sample, SampleMaker
from .clip_model import ClipModel
from .clip_params import ClipTrainParams


class ClipStage:
    """What `run_stage` asks of a stage; `engine.AccelerateStep` goes through a batch's micro-batches."""

    replayable = all_bfloat16 = False

    def __init__(
        self, model: ClipModel, data: ClipData, maker: SampleMaker, params: ClipTrainParams, rank: int, ranks: int
    ):
        self.name = params.text
        self.module = model
        self.params = params
        self._data, self._maker = data, maker
        self._share = params.batch_size // ranks
        self._first = rank * self._share
        self._trains_text = next(model.text.parameters()).requires_grad

    def prepare(self, step: int) -> None:
        self._data.prefetch(self._places(step))

    def prefetch(self, step: int) -> None:
        if step < self.params.loop.steps:
            self._data.prefetch(self._places(step))

    def batch(self, step: int) -> Iterator[dict[str, Tensor]]:
        """This rank's micro-batches, one made after the other."""
        places = self._places(step)
        for start in range(0, self._share, self.params.micro_batch):
            part = places[start : start + self.params.micro_batch]
            batch = self._maker.batch([self._data.take(place) for place in part], part)
            if self._trains_text:
                self.module.seen.index_fill_(0, batch["tokens"].flatten(), True)
            yield batch

    def loss(self, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError("the engine computes it, through what wraps the model")

    def held_out(self) -> list[Sample]:
        """The validation clips."""
        return self._data.load_held_out()

    def _places(self, step: int) -> list[int]:
        first = step * self.params.batch_size + self._first
        return list(range(first, first + self._share))
