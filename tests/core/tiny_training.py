"""A preset that makes a training step in a few hundredths of a second, and an art pack of discs to train it on."""

import numpy as np

from followclick_core import presets
from followclick_core.data import sprite_names
from followclick_core.data.art import ArtPack, PhotoInfo, SpriteInfo
from followclick_core.models.text_encoder import TextEncoderParams
from followclick_core.models.unet import UNetParams
from followclick_core.training.loop import LoopParams
from followclick_core.training.params import AutoencoderParams, MotionTrainParams, SpatialParams, TrainParams

SIZE = 32
TINY = presets._preset("tiny", SIZE, UNetParams(32, (1, 2), 1, (0, 1), 1, 2, 16), TextEncoderParams(16, 1, 2))
LOOP = LoopParams(steps=20, learning_rate=2e-3, warmup=2, ema_decay=0.5, log_every=5)
TRAINING = TrainParams(
    AutoencoderParams(LOOP, batch_size=4, chunk_size=2),
    SpatialParams(LOOP, batch_size=16, chunk_size=2),
    MotionTrainParams(LOOP, batch_size=2, chunk_size=1, pool_chunks=4, image_batch=2),
    AutoencoderParams(LOOP, batch_size=4, chunk_size=2),
)


def discs() -> ArtPack:
    """Four discs of clear colours over two smooth photos, on each side of the split."""
    rng = np.random.default_rng(0)
    codes = [(code, split) for code in ("1f600", "1f415", "1f985", "26f5") for split in ("train", "test")]
    y, x = (np.mgrid[:128, :128] + 0.5) / 64 - 1
    alpha = np.where(x**2 + y**2 < 0.7, 255, 0)[..., None]
    pictures = [np.concatenate([np.full((128, 128, 3), rng.integers(0, 255, 3)), alpha], -1) for _ in codes]
    photos = [np.linspace(rng.integers(0, 255, 3), rng.integers(0, 255, 3), 80)[None].repeat(80, 0) for _ in range(4)]
    infos = [
        SpriteInfo(code, sprite_names.noun(code), split, tuple(sorted(sprite_names.tags(code))))
        for code, split in codes
    ]
    return ArtPack(
        sprites=np.stack(pictures).astype(np.uint8),
        sprite_infos=infos,
        animations=np.zeros((0, 16, 112, 112, 4), np.uint8),
        animation_infos=[],
        photos=[photo.astype(np.uint8) for photo in photos],
        photo_infos=[PhotoInfo(f"p{i}", "a wall", "test", "CC0", "train" if i < 2 else "test") for i in range(4)],
    )
