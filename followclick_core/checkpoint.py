"""Weights in and out: safetensors only where we write, safetensors or weights-only pickles where we read.

Loading is strict: a file that does not fit says which keys are missing, unexpected or of another shape.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .files import atomic_path

WEIGHTS_DIR = Path(__file__).parent / "weights"
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


Params = TypeVar("Params")


class CheckpointError(ValueError):
    """A weights file that is damaged, unsafe, or of another model; the text says which keys do not fit."""


def load_safetensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor and the metadata of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated or no safetensors file.
    """
    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="pt", device=device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read as safetensors ({error}): it is truncated or another format; fetch it again."
        ) from error


def load_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors."""
    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} cannot be read as safetensors ({error}); fetch it again.") from error


def params_from(metadata: Mapping[str, str], parse: Callable[[str], Params], name: str) -> Params:
    """The numbers of a model, from the JSON under "params" in its file's metadata.

    Raises:
        CheckpointError: There are none, or they are of another version; `name` is named in the text.
    """
    try:
        return parse(metadata["params"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name} describes a model that this version does not know ({error}); use a file of the same version."
        ) from error


def save_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write atomically: an interrupted run leaves the old file or none, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            temporary,
            metadata=dict(metadata or {}),
        )


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a weights file of any allowed format; pickles run no code (`weights_only`).

    Tensors are views of the file, read from disk where they are used; nothing is in memory twice.

    A training checkpoint's wrapping is taken off: a `state_dict` entry, DDP's `module.` prefix, and what is no tensor.
    """
    path = _existing(path)
    if path.suffix.lower() in SAFETENSORS_SUFFIXES:
        tensors, metadata = load_safetensors(path)
    elif path.suffix.lower() in PICKLE_SUFFIXES:
        tensors, metadata = _load_pickle(path), {}
    else:
        known = ", ".join(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES)
        raise CheckpointError(f"{path.name} has no known suffix for weights: give one of {known}.")
    return {key.removeprefix("module."): value for key, value in tensors.items()}, metadata


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load `tensors` into `module`, every key and shape, or raise a CheckpointError that lists what does not fit."""
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    reshaped = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
    if missing or unexpected or reshaped:
        raise CheckpointError(
            f"{name} does not fit this model: {listed('missing', missing)}; {listed('unexpected', unexpected)}; "
            f"{listed('of another shape', reshaped)}. Choose a file made for this model."
        )
    # A module without memory takes the tensors themselves, so that weights are never held twice.
    module.load_state_dict(dict(tensors), assign=any(value.is_meta for value in own.values()))


def listed(what: str, keys: Iterable[str], limit: int = 4) -> str:
    """How many keys there are of what kind, and the first of them."""
    keys = sorted(keys)
    shown = ", ".join(keys[:limit]) + (", …" if len(keys) > limit else "")
    return f"{len(keys)} {what}" + (f" ({shown})" if keys else "")


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Only torch's newer format, a zip archive, can be read in place.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    # Torch's own text is left out: it ends in the advice to load the file unsafely.
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path.name} is damaged, or a pickle that would run code{f' ({what[1]})' if what else ''}, "
            "so it was not loaded; use a safetensors version of it."
        ) from error
    # Bytes that are no pickle at all make its reader fail in any way.
    except Exception as error:
        raise CheckpointError(
            f"{path.name} cannot be read as PyTorch weights: it is truncated or another format; fetch it again."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} holds a {type(content).__name__}, no dictionary of weights; choose another file."
        )
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no weights file {path.name} in {path.parent}; put it there or choose another."
        )
    return path
