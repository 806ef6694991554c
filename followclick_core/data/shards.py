"""Training samples from the shards that build-dataset writes.

`ShardClips` draws batches at random by a seed, as the scene generators do, so a training stage takes either and resumes
bit by bit. `stream_shards` reads shards from front to back, for sets that are read once and over a network.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image as PillowImage
from torch import Tensor

from ..dataset.store import digest_of
from ..dataset.tars import TarIndex
from ..shapes import Masks, PerSample

OPEN_SHARDS = 64  # whose indices are kept in memory


@dataclass(frozen=True)
class ShardParams:
    """What of a shard becomes a sample.

    Args:
        size: Side of the frames; stored ones are scaled.
        num_frames: The first so many of each clip; None takes all.
        mask_rule: Whose mask and magnitude; None: the one that the build chose.
        texts: "motion" trains on motion phrases, and passes over clips without one; "caption" trains on captions.
    """

    size: int
    num_frames: int | None = None
    mask_rule: str | None = None
    texts: str = "motion"

    def __post_init__(self):
        if self.texts not in ("motion", "caption"):
            raise ValueError(f"Texts are motion or caption, not {self.texts!r}.")


@dataclass(frozen=True)
class ShardBatch:
    """Clips with all that a training stage wants of them; the names are those of `scenes.SceneBatch`.

    Attributes:
        frames: 0..1.
        mask: What moves, where it is in the first frame, by ShardParams.mask_rule.
        swept: Wherever something moves in any frame: equation 2's union.
        magnitude: px/frame at 512 px of width.
        motion_prompts: Motion phrases, or captions with texts="caption".
        captions: Of the whole clip.
        records: The raw figures of each clip.
    """

    frames: Float[Tensor, "b 3 f h w"]
    mask: Masks
    swept: Masks
    magnitude: PerSample
    motion_prompts: list[str]
    captions: list[str]
    records: list[dict[str, Any]]


class DamagedClipError(ValueError):
    """A clip that cannot be read; the text says why."""


class ShardClips:
    """Random batches of a build's clips, the same for the same seed; on `device`."""

    def __init__(self, folder: str | Path, params: ShardParams, device: torch.device | str = "cpu"):
        """
        Args:
            folder: What build-dataset filled, or its `shards` folder alone.

        Raises:
            FileNotFoundError: There are no shards.
            ValueError: None of the clips has what params.texts asks for.
        """
        self.params = params
        self.device = torch.device(device)
        self._shards = find_shards(folder)
        counts = [_count(shard, params.texts) for shard in self._shards]
        self._ends = np.cumsum(counts)
        self._open = lru_cache(maxsize=OPEN_SHARDS)(partial(_open_shard, texts=params.texts))
        if not self._ends[-1]:
            raise ValueError(f"No clip in {folder} has a motion phrase; train on captions, or build with an endpoint.")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sample(self, batch_size: int, seed: int) -> ShardBatch:
        """A batch of clips, drawn with replacement."""
        draws = np.random.default_rng([seed, 0]).integers(len(self), size=batch_size)
        return self.take(draws.tolist())

    def sample_stills(self, batch_size: int, seed: int) -> ShardBatch:
        """A batch of single frames, for what learns from pictures alone: a random one of each clip."""
        rng = np.random.default_rng([seed, 1])
        draws = rng.integers(len(self), size=batch_size).tolist()
        return self._collate([self._load(index, rng.random()) for index in draws])

    def take(self, indices: Sequence[int]) -> ShardBatch:
        """The clips of these numbers, 0 to len - 1."""
        return self._collate([self._load(index) for index in indices])

    def key(self, index: int) -> str:
        """The name of a clip in its shard."""
        return self._place(index)[1]

    def _load(self, index: int, still: float | None = None) -> "_Sample":
        tar, key = self._place(index)
        return _decode(tar.read(key), self.params, still)

    def _place(self, index: int) -> tuple[TarIndex, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} clips; number {index} is not among them.")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        within = index - (int(self._ends[shard - 1]) if shard else 0)
        tar, keys = self._open(self._shards[shard])
        return tar, keys[within]

    def _collate(self, samples: list["_Sample"]) -> ShardBatch:
        return collate(samples, self.device)


def stream_shards(folder: str | Path, params: ShardParams, batch_size: int, shuffle: int = 0) -> Iterator[ShardBatch]:
    """Every clip once, in batches, read in order by webdataset; a rank and a loader's worker get shards of their own.

    Args:
        shuffle: Clips in the shuffling buffer; 0 keeps the order.
    """
    from webdataset.compat import WebDataset
    from webdataset.shardlists import split_by_node

    shards = [str(path) for path in find_shards(folder)]
    pipeline: Any = WebDataset(
        shards, shardshuffle=len(shards) if shuffle else False, nodesplitter=split_by_node, empty_check=False
    )
    samples: list[_Sample] = []
    for raw in pipeline.shuffle(shuffle) if shuffle else pipeline:
        if not _has_text(raw["motion.txt"], params.texts):
            continue
        samples.append(_decode(raw, params))
        if len(samples) == batch_size:
            yield collate(samples, torch.device("cpu"))
            samples = []
    if samples:
        yield collate(samples, torch.device("cpu"))


def find_shards(folder: str | Path) -> list[Path]:
    """The shards of a build that hold clips, in order; FileNotFoundError where there are none."""
    folder = Path(folder)
    shards = sorted((folder / "shards" if (folder / "shards").is_dir() else folder).glob("part-*.tar"))
    # A shard without its manifest was not finished; what is in it may be out of date.
    shards = [shard for shard in shards if _manifest(shard).get("samples")]
    if not shards:
        raise FileNotFoundError(f"There are no shards with clips in {folder}; make them by build-dataset.")
    return shards


def shards_digest(folder: str | Path) -> str:
    """Changes with the clips of a build: of its shards' names and manifests."""
    return digest_of([(shard.name, _manifest(shard)) for shard in find_shards(folder)])


@dataclass(frozen=True)
class _Sample:
    frames: Tensor  # 3 f h w, 0..1
    mask: Tensor  # 1 h w
    swept: Tensor
    record: dict[str, Any]
    motion_prompt: str


def collate(samples: list[_Sample], device: torch.device) -> ShardBatch:
    """Stack samples of one size into a batch."""
    return ShardBatch(
        frames=torch.stack([sample.frames for sample in samples]).to(device),
        mask=torch.stack([sample.mask for sample in samples]).to(device),
        swept=torch.stack([sample.swept for sample in samples]).to(device),
        magnitude=torch.tensor(
            [sample.record["motion"]["magnitude"][sample.record["mask_rule"]] for sample in samples], device=device
        ),
        motion_prompts=[sample.motion_prompt for sample in samples],
        captions=[sample.record["caption"] for sample in samples],
        records=[sample.record for sample in samples],
    )


def _decode(raw: Mapping[str, Any], params: ShardParams, still: float | None = None) -> _Sample:
    record = _record(raw["json"], params.mask_rule)
    names = sorted(name for name in raw if name.startswith("frame."))[: params.num_frames]
    if still is not None:
        names = [names[int(still * len(names))]]
    pictures = [np.asarray(_picture(raw, name)) for name in names]
    if len({picture.shape for picture in pictures}) != 1 or pictures[0].ndim != 3:
        raise DamagedClipError("damaged frames: none, or not all of one size")
    frames = np.stack(pictures)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    mask, swept = (_mask(_picture(raw, f"mask.{rule}.png")) for rule in (record["mask_rule"], "union"))
    return _Sample(
        frames=_resize(pixels, params.size).transpose(0, 1),
        # A pixel of a smaller frame moves where most of it does.
        mask=(F.adaptive_avg_pool2d(mask, params.size) >= 0.5).float(),
        swept=F.adaptive_max_pool2d(swept, params.size),
        record=record,
        motion_prompt=record["caption"] if params.texts == "caption" else record["motion_prompt"],
    )


def _record(data: bytes, mask_rule: str | None) -> dict[str, Any]:
    """A clip's figures, by the rule that is asked for."""
    try:
        record = json.loads(data)
        record["mask_rule"] = mask_rule or record["mask_rule"]
        if not math.isfinite(record["motion"]["magnitude"][record["mask_rule"]]):
            raise ValueError("its magnitude is no number")
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedClipError(f"damaged record: {error}") from error
    return record


def _resize(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


def _picture(raw: Mapping[str, Any], name: str) -> PillowImage.Image:
    try:
        picture = PillowImage.open(io.BytesIO(raw[name]))
        picture.load()
    # Pillow says SyntaxError of a broken PNG.
    except (OSError, SyntaxError) as error:
        raise DamagedClipError(f"damaged picture {name}") from error
    return picture


def _mask(picture: PillowImage.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("L")) > 127).float()[None]


def _open_shard(path: Path, texts: str) -> tuple[TarIndex, list[str]]:
    tar = TarIndex(path)
    return tar, [key for key in tar if _has_text(tar.read(key, "motion.txt")["motion.txt"], texts)]


def _has_text(motion: bytes, texts: str) -> bool:
    return texts == "caption" or bool(motion.strip())


def _count(shard: Path, texts: str) -> int:
    return _manifest(shard)["samples" if texts == "caption" else "with_motion_prompt"]


def _manifest(shard: Path) -> dict[str, Any]:
    path = shard.with_suffix(".json")
    return json.loads(path.read_bytes()) if path.is_file() else {}
