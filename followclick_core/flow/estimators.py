"""Optical flow between two frames: OpenCV's DIS, which needs no weights, or torchvision's RAFT from a file.

A flow estimator is a function (first, second) -> flow: the pixel at (x, y) of `first` lies at (x, y) + flow[y, x] in
`second`, in the frames' own pixels, x right and y down. OpenCV and torchvision are imported when an estimator is made.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_strict, load_tensors
from ..shapes import Flow, Image

DIS_MIN_SIDE = 12  # px; below it DIS has no scale left to start from
RAFT_STRIDE = 8  # RAFT's features are an eighth of the image,
RAFT_MIN_SIDE = 128  # and its four-level correlation pyramid needs 16 of them per side
RAFT_WIDTH_KEY = "feature_encoder.convnormrelu.0.weight"
RAFT_BUILDERS = {64: "raft_large", 32: "raft_small"}  # channels of the first convolution -> torchvision's name


FlowEstimator = Callable[[Image, Image], Flow]


def dis_flow() -> FlowEstimator:
    """Dense Inverse Search (Kroeger et al. 2016, arXiv:1603.03590), OpenCV's medium preset: 6 ms per pair at 256x256.

    On a textured disc over a still background it measures 3.97 px for a 4 px step and 0.01 px outside. Image noise
    becomes flow noise: a standard deviation of 3 grey levels of 255 gives a mean of 0.16 px where nothing moves.
    """
    import cv2

    # OpenCV's type stubs lack this function.
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore[reportAttributeAccessIssue]

    def estimate(first: np.ndarray, second: np.ndarray) -> Flow:
        _check_pair(first, second)
        if min(first.shape[:2]) < DIS_MIN_SIDE:
            height, width = first.shape[:2]
            raise ValueError(
                f"Frames of {width}x{height} px are too small to measure flow; give at least 12 px a side."
            )
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return search.calc(grey[0], grey[1], None)

    return estimate


def load_raft(weights: str | Path, device: torch.device | str = "cpu") -> FlowEstimator:
    """RAFT (Teed & Deng 2020), the paper's estimator, with torchvision's architecture and the weights of a file.

    Args:
        weights: torchvision's raft_large or raft_small, .pth or .safetensors; which of the two is read off the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or holds another model.
    """
    weights = Path(weights)
    tensors, _ = load_tensors(weights)
    model = _raft_for(tensors, weights.name)
    load_strict(model, tensors, weights.name)
    model = model.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def estimate(first: np.ndarray, second: np.ndarray) -> Flow:
        _check_pair(first, second)
        height, width = first.shape[:2]
        pair = torch.stack([torch.from_numpy(first.copy()), torch.from_numpy(second.copy())])
        pair = pair.permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
        pair = nn.functional.pad(pair, (0, _raft_padding(width), 0, _raft_padding(height)), mode="replicate")
        flow = model(pair[:1], pair[1:])[-1][0, :, :height, :width]
        return flow.permute(1, 2, 0).float().cpu().numpy()

    return estimate


def _raft_for(tensors: dict[str, Tensor], name: str) -> nn.Module:
    first_layer = tensors.get(RAFT_WIDTH_KEY)
    builder = None if first_layer is None or first_layer.ndim == 0 else RAFT_BUILDERS.get(first_layer.shape[0])
    if builder is None:
        raise CheckpointError(f"{name} holds no RAFT weights; give torchvision's raft_large or raft_small.")
    from torchvision.models import optical_flow

    return getattr(optical_flow, builder)(weights=None, progress=False)


def _raft_padding(side: int) -> int:
    target = max(RAFT_MIN_SIDE, -(-side // RAFT_STRIDE) * RAFT_STRIDE)
    return target - side


def _check_pair(first: np.ndarray, second: np.ndarray) -> None:
    for frame in (first, second):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(
                f"Flow is measured between RGB frames, uint8 h w 3; came {frame.dtype} {frame.shape}: convert them."
            )
    if first.shape != second.shape:
        raise ValueError(
            f"The two frames differ in size, {first.shape[:2]} and {second.shape[:2]}; resize one of them."
        )
