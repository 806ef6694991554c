"""Names for the tensor shapes of this package, and the legend of their axes.

b  batch           f  frames            c  channels
h  height, down    w  width, right      n  tokens          d  width of a token

Value ranges: pixels are 0..1 as floats and 0..255 as uint8; latents have unit scale; masks are 0..1, where 1 moves.
The annotations cost nothing at run time: they are checked only while the tests run.
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Video = Float[Tensor, "b c f h w"]  # latents, or pixels 0..1
Frames = Float[Tensor, "bf c h w"]  # the same with frames folded into the batch, as a UNet sees them
# What a function returns that changes channels, size or both.
FramesOfOtherWidth = Float[Tensor, "bf c_out h w"]
FramesOfOtherSize = Float[Tensor, "bf c h_out w_out"]
OtherFrames = Float[Tensor, "bf c_out h_out w_out"]
OtherVideo = Float[Tensor, "b c_out f_out h_out w_out"]
Tokens = Float[Tensor, "b n d"]  # text embedding ("context")
Positions = Float[Tensor, "b hw c"]  # an image folded for attention, one token per pixel
Masks = Float[Tensor, "b 1 h w"]  # 1 = moves
RegionMasks = Float[Tensor, "b r h w"]  # of several regions of each picture
MasksOfOtherSize = Float[Tensor, "b 1 h_out w_out"]
PerSample = Float[Tensor, "b"]
Timesteps = Int[Tensor, "b"]
PerTimestep = Float[Tensor, "t"]

Image = UInt8[np.ndarray, "h w 3"]  # RGB
Frames8 = UInt8[np.ndarray, "f h w 3"]
Mask = Bool[np.ndarray, "h w"]
ImageOfOtherSize = UInt8[np.ndarray, "h_out w_out 3"]
MaskOfOtherSize = Bool[np.ndarray, "h_out w_out"]
Frames8OfOtherSize = UInt8[np.ndarray, "f h_out w_out 3"]
Flow = Float[np.ndarray, "h w 2"]  # pixels; x right, y down


def fold_frames(video: Video) -> Frames:
    """b c f h w -> (b f) c h w, channels last in memory: convolutions are fastest so."""
    return rearrange(video, "b c f h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)


def unfold_frames(frames: Frames, batch: int) -> Video:
    """(b f) c h w -> b c f h w."""
    return rearrange(frames, "(b f) c h w -> b c f h w", b=batch)
