"""The last step: the kept clips of a part with everything that belongs to them, as a webdataset shard."""

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from ..files import sha256_of
from .sources import Video
from .steps import FORMAT, Step, npy_bytes
from .store import CLIPS, LABELS, MOTION, SHARDS, Store, digest_of
from .tars import TarIndex

DEMO_WEIGHTS = "demo"
WEIGHT_FILES = ("autoencoder", "text_encoder")


@dataclass(frozen=True)
class PackStep(Step):
    """Copies frames, masks and flow, and adds captions and, with `weights`, latents and text embeddings."""

    mask_rule: str
    weights: str | None
    weights_digest: str
    device: str
    name = SHARDS

    def digest(self, part: int) -> str | None:
        motion, labels = self.store.digest(MOTION, part), self.store.digest(LABELS, part)
        return digest_of(FORMAT, self.mask_rule, self.weights_digest, motion, labels) if motion and labels else None

    def make(self, part: int, tar: Any) -> dict[str, Any]:
        store = self.store
        labels = store.read(LABELS, part)
        assert labels is not None
        encoder = _encoder(self.weights, self.device) if self.weights else None
        clips, motion = TarIndex(store.tar(CLIPS, part)), TarIndex(store.tar(MOTION, part))
        with_phrase = 0
        for key, label in labels["kept"].items():
            # Readers take a phrase of blanks for none; the count below must be theirs.
            record = {**label, "motion_prompt": label["motion_prompt"].strip()}
            with_phrase += bool(record["motion_prompt"])
            sample: dict[str, Any] = {**clips.read(key), **motion.read(key)}
            if encoder is not None:
                sample |= encoder.encode(sample, record)
            texts = {"txt": record["caption"], "motion.txt": record["motion_prompt"]}
            tar.write({"__key__": key, **sample, **texts, "json": record})
        return {"samples": len(labels["kept"]), "with_motion_prompt": with_phrase}


def records_of(store: Store, part: int, videos: list[Video], mask_rule: str) -> list[dict[str, Any]]:
    """The raw record of every measured clip of a part, as shards carry it, but for the motion phrase."""
    clips, motion = store.read(CLIPS, part), store.read(MOTION, part)
    if clips is None or motion is None:
        return []
    return [
        {
            **sample,
            "mask_rule": mask_rule,
            "measured_by": motion["about"],
            "motion": motion["figures"][sample["key"]],
            "caption": videos[sample["video_index"]].caption,
            "extra": videos[sample["video_index"]].extra or {},
        }
        for sample in clips["samples"]
        if sample["key"] in motion["figures"]
    ]


def weights_digest(weights: str | None) -> str:
    """Changes with the weights that latents and embeddings are made by.

    Raises:
        FileNotFoundError: The folder lacks them.
    """
    if weights is None:
        return ""
    from ..models.bundle import weights_path

    return digest_of([sha256_of(weights_path(part, _folder(weights))) for part in WEIGHT_FILES])


class _Encoder:
    """Latents of the frames and embeddings of both texts, float16."""

    def __init__(self, weights: str, device: str):
        from ..models.bundle import weights_path
        from ..models.sd_autoencoder import load_any_autoencoder
        from ..models.text_encoder import load_text_encoder

        self._device = device
        self._autoencoder = load_any_autoencoder(weights_path("autoencoder", _folder(weights))).to(device)
        self._text = load_text_encoder(weights_path("text_encoder", _folder(weights))).to(device)

    def encode(self, sample: Mapping[str, bytes], record: Mapping[str, Any]) -> dict[str, bytes]:
        import torch

        names = sorted(name for name in sample if name.startswith("frame."))
        latents = []
        with torch.inference_mode():
            # Frame by frame: a batch of 16 at 512 px would take gigabytes.
            for name in names:
                picture = np.array(PillowImage.open(io.BytesIO(sample[name])))
                pixels = torch.from_numpy(picture).to(self._device).permute(2, 0, 1)[None].float() / 255
                latents.append(self._autoencoder.encode(pixels)[0])
            texts = self._text.encode([record["caption"], record["motion_prompt"]])
        return {
            "latents.npy": npy_bytes(torch.stack(latents, dim=1).half().cpu().numpy()),
            "caption.npy": npy_bytes(texts[0].half().cpu().numpy()),
            "motion.npy": npy_bytes(texts[1].half().cpu().numpy()),
        }


@functools.lru_cache(maxsize=1)
def _encoder(weights: str, device: str) -> _Encoder:
    return _Encoder(weights, device)


def _folder(weights: str) -> Path | None:
    return None if weights == DEMO_WEIGHTS else Path(weights)
