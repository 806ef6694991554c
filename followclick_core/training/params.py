"""What a run can be told, in frozen dataclasses that are saved with it."""

import math
from dataclasses import dataclass, replace

from .loop import LoopParams

# Filling the pool is what a run begins with, and on a CPU that takes long.
POOLED_BATCHES = 16


@dataclass(frozen=True)
class AutoencoderParams:
    """Args: latent_noise is added before decoding in training, so that the decoder forgives the sampler's errors."""

    loop: LoopParams
    batch_size: int
    chunk_size: int  # new pictures per step
    latent_noise: float = 0.05
    gradient_weight: float = 0.5
    statistics_weight: float = 0.05


@dataclass(frozen=True)
class SpatialParams:
    """Text-to-image training of the UNet and the text encoder on still scenes."""

    loop: LoopParams
    batch_size: int
    chunk_size: int  # new samples per step; the pool reuses each batch_size / chunk_size times
    text_dropout: float = 0.1
    word_dropout: float = 0.03


@dataclass(frozen=True)
class MotionTrainParams:
    """The paper's recipe (sections 4.1 to 4.4 and 5.1), and where this project departs from it.

    Args:
        mask_ratio: Share of the first frame's latents set to zero (paper: 0.7).
        masked_share: Share of the samples that are masked. The paper masks all; a model of this size then never sees
            the whole first frame that inference gives it, so the rest sees it unmasked.
        region_weight: Extra weight of the loss where the object moves: the still background is large and easy.
        image_batch: Single frames per step that keep the UNet a text-to-image model while its weights train along.
        text_dropout: Share of samples without a prompt, for classifier-free guidance.
        correspondence_weight: Of the loss that teaches attention where a moved point comes from (correspondence.py).
        correspondence_points: Places in each frame for that loss.
        still_weight: Of the loss that teaches the still gate what stands still (still_loss.py).
        crop: Side in pixels of the part around the object that is trained on, another each time; None: all of the
            clip. A small part at full scale costs a fraction, and the rest stands still anyway.
        noisy_share: Share of the samples whose timestep is at least `noisy_from`; the others' are uniform. What moves
            where is decided while there is much noise; the last steps only refine.
    """

    loop: LoopParams
    batch_size: int
    chunk_size: int
    pool_chunks: int = 64
    mask_ratio: float = 0.7
    masked_share: float = 0.5
    region_weight: float = 4.0
    image_batch: int = 32
    image_weight: float = 0.2
    text_dropout: float = 0.1
    word_dropout: float = 0.03
    correspondence_weight: float = 0.0
    correspondence_points: int = 32
    still_weight: float = 0.02
    crop: int | None = None
    noisy_share: float = 0.0
    noisy_from: int = 300

    def with_batch(self, batch_size: int) -> "MotionTrainParams":
        """The same recipe in other portions: the same share of a batch is made anew, at least a clip; the pool holds
        POOLED_BATCHES.

        Raises:
            ValueError: A batch of no clip.
        """
        if batch_size < 1:
            raise ValueError(f"A batch of {batch_size} clips teaches nothing; give 1 or more.")
        if batch_size == self.batch_size:
            return self
        share = batch_size / self.batch_size
        chunk_size = max(1, round(self.chunk_size * share))
        return replace(
            self,
            batch_size=batch_size,
            chunk_size=chunk_size,
            pool_chunks=math.ceil(POOLED_BATCHES * batch_size / chunk_size),
            image_batch=min(batch_size, max(1, round(self.image_batch * share))),
        )


@dataclass(frozen=True)
class TrainParams:
    """What each stage is told; `decoder` is the autoencoder's second half, trained on at the end."""

    autoencoder: AutoencoderParams
    spatial: SpatialParams
    motion: MotionTrainParams
    decoder: AutoencoderParams


TRAINING = {
    "demo": TrainParams(
        autoencoder=AutoencoderParams(LoopParams(steps=4000, learning_rate=1.5e-3), batch_size=32, chunk_size=16),
        spatial=SpatialParams(LoopParams(steps=1500, learning_rate=8e-4), batch_size=256, chunk_size=32),
        motion=MotionTrainParams(
            LoopParams(steps=9000, learning_rate=8e-4),
            batch_size=32,
            chunk_size=4,
            pool_chunks=256,
            masked_share=0.0,  # docs/REPRODUCTION.md: in a short training every masking costs
            noisy_share=0.5,
            # After 240,000 clips without it these attentions were hardly sharper than chance: 4.7 nats of 4.85.
            correspondence_weight=0.02,
        ),
        decoder=AutoencoderParams(LoopParams(steps=6000, learning_rate=1e-3), batch_size=32, chunk_size=16),
    ),
    "small": TrainParams(
        autoencoder=AutoencoderParams(LoopParams(steps=4000, learning_rate=1.5e-3), batch_size=32, chunk_size=16),
        spatial=SpatialParams(LoopParams(steps=3000, learning_rate=8e-4), batch_size=256, chunk_size=32),
        motion=MotionTrainParams(
            LoopParams(steps=20000, learning_rate=6e-4, warmup=100, decay_from=0.55),
            batch_size=16,
            chunk_size=4,
            pool_chunks=128,
            image_batch=16,
            masked_share=0.0,
            noisy_share=0.5,
            correspondence_weight=0.02,
        ),
        decoder=AutoencoderParams(LoopParams(steps=6000, learning_rate=1e-3), batch_size=32, chunk_size=16),
    ),
    "nano": TrainParams(
        autoencoder=AutoencoderParams(LoopParams(steps=4000, learning_rate=1.5e-3), batch_size=8, chunk_size=4),
        spatial=SpatialParams(LoopParams(steps=2000, learning_rate=1e-3), batch_size=32, chunk_size=8),
        motion=MotionTrainParams(
            LoopParams(steps=12000, learning_rate=1e-3), batch_size=8, chunk_size=2, image_batch=8
        ),
        decoder=AutoencoderParams(LoopParams(steps=1000, learning_rate=1e-3), batch_size=8, chunk_size=4),
    ),
}
