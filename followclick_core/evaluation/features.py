"""What the paper's measures look at pictures with: CLIP, I3D and DreamSim, and MobileNetV2 where these cannot be had.

Each is loaded from a file or folder that the caller names; nothing is ever downloaded. The libraries are those of the
extra `evaluation` (open_clip, cd-fvd, dreamsim), imported when a model is loaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage
from torch import Tensor, nn

from ..checkpoint import load_strict, load_tensors
from ..shapes import Frames8, Image

CLIP_MODEL = "ViT-B-32"
DREAMSIM_MODEL = "ensemble"
# What DreamSim would download: its release's files and, for DINO's, the code and weights that torch.hub keeps.
_DINO = ("dino_vitb16_pretrain.pth", "facebookresearch_dino_main/hubconf.py", "checkpoints/dino_vitbase16_pretrain.pth")
DREAMSIM_FILES = {
    "ensemble": (
        *_DINO,
        "open_clip_vitb16_pretrain.pth.tar",
        "clip_vitb16_pretrain.pth.tar",
        "ensemble_lora/adapter_config.json",
    ),
    "dino_vitb16": (*_DINO, "dino_vitb16_single_lora/adapter_config.json"),
    "open_clip_vitb32": ("open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora/adapter_config.json"),
    "clip_vitb32": ("clip_vitb32_pretrain.pth.tar", "clip_vitb32_single_lora/adapter_config.json"),
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ClipFeatures:
    """Unit vectors of pictures and texts in CLIP's common space (Radford et al. 2021, arXiv:2103.00020)."""

    def __init__(self, model: nn.Module, preprocess: Callable[[Any], Tensor], tokenizer: Callable[[list[str]], Tensor]):
        self._model, self._preprocess, self._tokenizer = model.eval(), preprocess, tokenizer

    @torch.inference_mode()
    def images(self, frames: Frames8) -> np.ndarray:
        """f d, unit length."""
        pixels = torch.stack([self._preprocess(PillowImage.fromarray(frame)) for frame in frames])
        return F.normalize(self._model.encode_image(pixels), dim=-1).numpy()  # type: ignore[operator]

    @torch.inference_mode()
    def text(self, prompt: str) -> np.ndarray:
        """d, unit length."""
        return F.normalize(self._model.encode_text(self._tokenizer([prompt])), dim=-1)[0].numpy()  # type: ignore[operator]


class MobileNetFeatures:
    """Pooled features of torchvision's MobileNetV2, 1280 per picture, at 224 px (Sandler et al. 2018)."""

    def __init__(self, model: nn.Module):
        self._model = model.eval()

    @torch.inference_mode()
    def images(self, frames: Frames8) -> np.ndarray:
        """f 1280."""
        pixels = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        features = cast(nn.Module, self._model.features)((pixels - mean) / std)
        return features.mean(dim=(2, 3)).numpy()


class I3dLogits:
    """The 400 class scores of Kinetics that FVD compares (Unterthiner et al. 2018, arXiv:1812.01717), at 224 px."""

    def __init__(self, model: nn.Module, preprocess: Callable[[np.ndarray], Tensor]):
        self._model, self._preprocess = model.eval(), preprocess

    @torch.inference_mode()
    def clip(self, frames: Frames8) -> np.ndarray:
        """400, for a clip of at least 9 frames."""
        return self._model(self._preprocess(np.array(frames)[None]))[0].numpy()


class DreamSimDistance:
    """Perceptual distance of two pictures, about 0..1 (Fu et al. 2023, arXiv:2306.09344)."""

    def __init__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        preprocess: Callable[[Any], Tensor],
        name: str = DREAMSIM_MODEL,
    ):
        self._model, self._preprocess, self.name = model, preprocess, name

    @torch.inference_mode()
    def __call__(self, image: Image, frames: Frames8) -> np.ndarray:
        """f: of each frame to the image."""
        one = self._preprocess(PillowImage.fromarray(image))
        all_frames = torch.cat([self._preprocess(PillowImage.fromarray(frame)) for frame in frames])
        return self._model(one.expand_as(all_frames), all_frames).flatten().numpy()


def load_clip(path: str | Path, model: str = CLIP_MODEL) -> ClipFeatures:
    """CLIP from a weights file that open_clip reads.

    Args:
        model: The file's architecture, by open_clip's name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: open_clip is not installed, or does not know the model.
    """
    file = _existing(path, "CLIP weights")
    try:
        import open_clip
    except ImportError as error:
        raise _not_installed("open_clip_torch", error) from error
    if model not in open_clip.list_models():
        raise ValueError(f"open_clip knows no model {model!r}; name that of the weights, such as {CLIP_MODEL}.")
    network, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=str(file))
    return ClipFeatures(network, cast(Any, preprocess), open_clip.get_tokenizer(model))


def load_i3d(path: str | Path) -> I3dLogits:
    """I3D from i3d_pretrained_400.pt, the file that cd-fvd and TATS use.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: cd-fvd is not installed.
    """
    file = _existing(path, "I3D weights")
    try:
        from cdfvd.third_party.i3d.utils import load_i3d_model, preprocess_i3d
    except ImportError as error:
        raise _not_installed("cd-fvd", error) from error
    return I3dLogits(load_i3d_model(torch.device("cpu"), str(file)), preprocess_i3d)


def load_dreamsim(folder: str | Path, model: str = DREAMSIM_MODEL) -> DreamSimDistance:
    """DreamSim from the folder into which its release unpacks.

    Raises:
        FileNotFoundError: The folder lacks a file, which DreamSim would otherwise download.
        ValueError: dreamsim is not installed, or there is no such model.
    """
    if model not in DREAMSIM_FILES:
        raise ValueError(f"There is no DreamSim model {model!r}; choose one of {', '.join(DREAMSIM_FILES)}.")
    for name in DREAMSIM_FILES[model]:
        _existing(Path(folder) / name, "DreamSim file")
    try:
        from dreamsim import dreamsim  # pyright: ignore[reportMissingImports]  # too large for the tests
    except ImportError as error:
        raise _not_installed("dreamsim", error) from error
    return DreamSimDistance(*dreamsim(device="cpu", cache_dir=str(folder), dreamsim_type=model), name=model)


def load_mobilenet(path: str | Path, width: float = 1.0) -> MobileNetFeatures:
    """torchvision's MobileNetV2 from its weights file (mobilenet_v2-b0353104.pth, or another width's).

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It holds another model.
    """
    from torchvision.models import mobilenet_v2

    file = _existing(path, "MobileNetV2 weights")
    tensors, _ = load_tensors(file)
    network = mobilenet_v2(weights=None, width_mult=width)
    load_strict(network, tensors, file.name)
    return MobileNetFeatures(network)


def _existing(path: str | Path, what: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} {path}; name the file that you downloaded.")
    return path


def _not_installed(package: str, error: ImportError) -> ValueError:
    return ValueError(f"{package} cannot be imported ({error}); pip install 'followclick[evaluation]'.")
