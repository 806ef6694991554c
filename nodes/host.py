"""What this pack asks of ComfyUI: folders and files, memory, and the layout of pictures.

The files named host*.py are the only ones that import comfy.* and folder_paths. Pictures and masks cross here between
the host's floats (b h w c and b h w, 0..1) and the core's arrays (uint8 h w 3, bool h w).
"""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import comfy.model_management as memory
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image as PillowImage
from torch import Tensor, nn

from ..followclick_core.animator import Canvas
from ..followclick_core.files import atomic_path
from ..followclick_core.images import check_size, load_image, to_rgb_uint8

EMBEDDED = "demo"  # in the file lists: the weights that come with the pack
MOTION_FOLDERS = ("followclick", "animatediff_models")
LORA_FOLDERS = ("animatediff_motion_lora",)
SEGMENTER_FOLDERS = ("sams",)
EXAMPLES = Path(__file__).parents[1] / "web" / "examples"


def register_folders() -> None:
    """Tell the host about our model folders; those that other packs share keep what they have."""
    for name in MOTION_FOLDERS + LORA_FOLDERS + SEGMENTER_FOLDERS:
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        paths, extensions = folder_paths.folder_names_and_paths[name]
        # A folder that is new to the host lists every file; a list, as extra_model_paths.yaml may leave it, stays.
        merged = set(extensions) | folder_paths.supported_pt_extensions
        folder_paths.folder_names_and_paths[name] = (paths, merged)


register_folders()


def weight_files(folders: tuple[str, ...]) -> list[str]:
    """Names for a combo: the embedded weights, then every file in the folders, first come first served."""
    return list(dict.fromkeys([EMBEDDED, *files_in(folders)]))


def files_in(folders: tuple[str, ...]) -> list[str]:
    """Every weights file in the folders, by name."""
    return [name for folder in folders for name in folder_paths.get_filename_list(folder)]


def weight_path(name: str, folders: tuple[str, ...]) -> Path:
    """Where the file of that name is.

    Raises:
        FileNotFoundError: In none of the folders. The host does not check combo values of this node API itself.
    """
    for folder in folders:
        if found := folder_paths.get_full_path(folder, name):
            return Path(found)
    places = " or ".join(path for folder in folders for path in folder_paths.get_folder_paths(folder)[:1])
    # As in their lists: motion LoRAs are the only ones of which the pack has none.
    instead = "" if folders == LORA_FOLDERS else f", or choose {EMBEDDED!r}, which comes with the pack"
    raise FileNotFoundError(f"There is no file {name!r}; put it into {places}{instead}.")


on_detach: list[Callable[["WholePatcher"], None]] = []  # told of each of them that the host unloads


class WholePatcher(ModelPatcher):
    """Memory management for the core's modules: wholly on the device, or wholly off it.

    The host streams single layers only if they are of its own classes; of others it would leave a part behind.
    """

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        model = super().detach(unpatch_all)
        if unpatch_all:  # otherwise the host only takes it up anew
            for tell in on_detach:
                tell(self)
        return model

    def load(
        self,
        device_to: torch.device | None = None,
        lowvram_model_memory: int = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
    ) -> None:
        super().load(device_to, 0, force_patch_weights, full_load=True)

    def partially_unload(self, device_to: torch.device, memory_to_free: int = 0) -> int:
        return 0  # the host then unloads it as a whole


def hosted(*modules: nn.Module, kind: type[WholePatcher] = WholePatcher) -> WholePatcher:
    """A patcher that moves modules of the core together.

    They go into a list, for the host writes attributes such as `device` onto what it manages, and Sam has a read-only
    one of that name.
    """
    return kind(nn.ModuleList(modules), memory.get_torch_device(), memory.unet_offload_device())


def load_on_device(*patchers: ModelPatcher) -> torch.device:
    """Have the host move what is about to run to its device; it may unload that again when something else is to run."""
    memory.throw_exception_if_processing_interrupted()
    memory.load_models_gpu(list(patchers))
    return patchers[0].load_device


def host_progress() -> Callable[[str, int, int], None]:
    """Tell the node's progress bar of each stage; Cancel ends the run at the next step."""
    bar = comfy.utils.ProgressBar(1)

    def report(stage: str, done: int, total: int) -> None:
        memory.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report


def example_pictures() -> dict[str, Path]:
    """The pictures that come with the pack, by name."""
    return {path.stem: path for path in sorted(EXAMPLES.glob("*.jpg"))}


def example_picture(name: str) -> Tensor:
    """One of them as an IMAGE.

    Raises:
        ValueError: there is none of that name.
    """
    pictures = example_pictures()
    if name not in pictures:
        raise ValueError(f"There is no example picture {name!r}; choose one of {', '.join(pictures)}.")
    return frames_to_image(load_image(pictures[name])[None])


def image_to_array(image: Tensor) -> np.ndarray:
    """The first picture of an IMAGE, b h w c 0..1, as uint8 h w 3."""
    if image.ndim != 4 or not len(image):
        raise ValueError(f"An IMAGE has the shape (batch, height, width, 3), not {tuple(image.shape)}; connect one.")
    # Resampling overshoots a little, which is no reason to refuse a picture.
    return to_rgb_uint8(image[0].float().clamp(0, 1).cpu().numpy())


def image_to_frames(images: Tensor) -> np.ndarray:
    """Every picture of an IMAGE, b h w c 0..1, as uint8 frames f h w 3."""
    return np.stack([image_to_array(image[None]) for image in images])


def picture_digest(picture: np.ndarray) -> bytes:
    """A name for these very pixels."""
    digest = hashlib.blake2b(repr(picture.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(picture))
    return digest.digest()


def temporary_frame(picture: np.ndarray) -> dict[str, list[dict[str, str]]]:
    """The picture as a PNG in the host's temporary folder, for the click editor to show: what a node returns as `ui`.

    Not under the key "images", for which the front end would add a preview of its own.
    """
    folder = Path(folder_paths.get_temp_directory())
    path = folder / f"followclick-{picture_digest(picture).hex()}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            # Little is gained by harder compression of what lives until the next start.
            PillowImage.fromarray(picture).save(temporary, compress_level=1)
    return {"followclick_frame": [{"filename": path.name, "subfolder": "", "type": "temp"}]}


def frames_to_image(frames: np.ndarray) -> Tensor:
    """Frames, uint8 f h w 3, as an IMAGE batch."""
    # torch warns of arrays that it may not write to, such as a picture just loaded.
    return torch.from_numpy(np.require(frames, requirements="W")).float() / 255


def masks_to_comfy(masks: Iterable[np.ndarray]) -> Tensor:
    """Masks, h w, as one MASK batch, b h w 0..1."""
    return torch.stack([torch.from_numpy(np.asarray(mask, dtype=np.float32)) for mask in masks])


def drawn_mask_of(mask: Tensor | None) -> np.ndarray | None:
    """The first mask of a MASK batch, bool h w: what is drawn at least half opaque. None if nothing is."""
    if mask is None or not len(mask):
        return None
    drawn = (mask.reshape(-1, *mask.shape[-2:])[0].float() >= 0.5).cpu().numpy()
    return drawn if drawn.any() else None


def one_mask(mask: Tensor) -> Tensor:
    """All masks of a MASK batch as one, 1 h w.

    Raises:
        ValueError: nothing is selected.
    """
    joined = mask.reshape(-1, *mask.shape[-2:]).float().amax(dim=0, keepdim=True)
    if not joined.max() > 0:  # true for NaN too
        raise ValueError("The mask is empty, so nothing would move; click on the object, or draw a mask over it.")
    return joined.clamp(0, 1)


def whole_mask(mask: Tensor) -> np.ndarray:
    """All masks of a MASK batch as one, bool h w: what is selected at least by half.

    Raises:
        ValueError: nothing is selected.
    """
    return one_mask(mask)[0].cpu().numpy() >= 0.5


def fitted_mask(mask: Tensor, frames: np.ndarray) -> np.ndarray:
    """A MASK at the size of frames f h w 3, as First Frame brought it there; bool h w.

    Raises:
        ValueError: nothing is selected.
    """
    shares = fit(one_mask(mask)[None], (frames.shape[2], frames.shape[1]))[0, 0]
    # Of an object that is smaller than a pixel there, the one of which it covers most.
    return (shares >= min(0.5, float(shares.max()))).cpu().numpy()


def fitted_picture(image: Tensor, frames: np.ndarray) -> np.ndarray:
    """The first picture of an IMAGE at the size of frames f h w 3, as First Frame brought it there; uint8 h w 3."""
    return image_to_array(fit(image[:1].movedim(-1, 1), (frames.shape[2], frames.shape[1])).movedim(1, -1))


def fitting_size(image: Tensor, trained_size: int, multiple: int) -> tuple[int, int]:
    """(width, height) for a clip of a picture, b h w c: about trained_size² pixels in about its proportions.

    Both are multiples of what the UNet needs, as the graph has no place where padding could be cut off again. Of the
    sizes around the ideal one, that which crops least is taken.

    Raises:
        ValueError: the picture is too small, too large or too narrow.
    """
    height, width = image.shape[1:3]
    check_size(width, height, "The image")
    canvas = Canvas.fit((width, height), trained_size, multiple)
    around = [
        [max(1, math.floor(side / multiple)) * multiple, math.ceil(side / multiple) * multiple]
        for side in (canvas.width, canvas.height)
    ]

    def cost(size: tuple[int, int]) -> float:
        wider, larger = size[0] * height / (size[1] * width), size[0] * size[1] / trained_size**2
        return 2 * abs(math.log(wider)) + abs(math.log(larger))

    return min(itertools.product(*around), key=cost)


def fit(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures, b c h w, at this (width, height): scaled, and cropped in the middle to its proportions."""
    shrinks = size[0] * size[1] < pictures.shape[-1] * pictures.shape[-2]
    return comfy.utils.common_upscale(pictures, *size, "area" if shrinks else "bilinear", "center")
