"""A pack of textured discs over smooth photos, and the tiny model's weights from the folder above."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from followclick_core.data.art import ArtPack, PhotoInfo, SpriteInfo


@pytest.fixture(scope="session")
def art_pack() -> ArtPack:
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:128, :128] + 0.5) / 64 - 1
    alpha = (np.hypot(x, y) < 0.9)[..., None].astype(np.uint8) * 255
    splits = ("train", "test") * 4
    return ArtPack(
        sprites=np.stack([np.concatenate([_texture(rng, 128, 12), alpha], -1) for _ in splits]),
        sprite_infos=[SpriteInfo(f"1f60{i}", "disc", split, (), {}) for i, split in enumerate(splits)],
        animations=np.zeros((0, 16, 64, 64, 4), np.uint8),
        animation_infos=[],
        photos=[_texture(rng, 160, 8) for _ in splits],
        photo_infos=[PhotoInfo(f"p{i}", "a wall", "test", "CC0", split) for i, split in enumerate(splits)],
    )


def _texture(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    coarse = torch.tensor(rng.uniform(0, 255, (1, 3, cells, cells)), dtype=torch.float32)
    pixels = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255)
    return pixels[0].permute(1, 2, 0).numpy().astype(np.uint8)
