"""Context windows inside the host's sampling: every window sees what belongs to its own frames.

The host's windows (ContextWindowsManual) cut the latents of a long clip, but of what goes with them 0.3.64 cuts
nothing that has frames as its first axis: the first-frame condition, magnitudes over time and ControlNet's hints stay
those of the first window. `FrameWindows` is the host's handler with that mended. While a MODEL with a motion model
samples, it takes the place of the host's own, so that node works too; the Context Windows node sets it directly.
"""

import copy

import torch
from comfy.conds import CONDRegular
from comfy.context_windows import (
    ContextFuseMethod,
    ContextSchedule,
    IndexListContextHandler,
    IndexListContextWindow,
    create_prepare_sampling_wrapper,
)
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ..followclick_core.models.motion_model import LAYOUTS
from ..followclick_core.windows import blend_windows, context_windows, continued_condition, window_weights
from .host_conds import FIRST_FRAME, CurveCond, FirstFrameCond


def with_context_windows(model: ModelPatcher, length: int, overlap: int, loop: bool) -> ModelPatcher:
    """A copy of MODEL that samples clips of more than `length` frames in windows, and loops of any length.

    Raises:
        ValueError: There is no overlap, or it is not shorter than the windows.
    """
    context_windows(length + 1, length, overlap)  # raises
    patched = model.clone()
    patched.model_options["context_handler"] = FrameWindows(
        ContextSchedule("followclick", _schedule),
        ContextFuseMethod("pyramid", _weights),
        context_length=length,
        context_overlap=overlap,
        closed_loop=loop,
        dim=0,
    )
    create_prepare_sampling_wrapper(patched)  # memory is needed for a window, not for the clip
    return patched


def mend_windows(model_options: dict, layout: str, positive: list[dict]) -> None:
    """Give one run's options a handler that cuts rightly, if they have one of the host's for frames.

    Args:
        model_options: The guider's own; what they hold is replaced, not changed, for it belongs to the graph.
        layout: How the motion model lays the first frame out over time.
        positive: The guider's positive entries, by which a call's are known: guiders call in orders of their own.
    """
    if handler := _handler(model_options):
        model_options["context_handler"] = FrameWindows.of_run(handler, layout, positive)


def frames_at_once(model_options: dict) -> int | None:
    """Frames of a window, if a run's options cut clips into windows."""
    handler = _handler(model_options)
    return handler.context_length if handler else None


def _handler(model_options: dict) -> IndexListContextHandler | None:
    """The host's handler of windows, if it cuts frames and not something else."""
    handler = model_options.get("context_handler")
    return handler if isinstance(handler, IndexListContextHandler) and handler.dim == 0 else None


def _schedule(num_frames: int, handler: IndexListContextHandler, _options: dict) -> list[list[int]]:
    return context_windows(num_frames, handler.context_length, handler.context_overlap, handler.closed_loop)


def _weights(_length: int, full_length: int, idxs: list[int], handler: IndexListContextHandler, **_: object) -> list:
    loop = handler.closed_loop and handler.context_schedule.func is _schedule
    return window_weights(list(idxs), full_length, handler.context_overlap, loop)


class FrameWindow(IndexListContextWindow):
    """Frames of a clip, cut and added as the host does; its way of indexing means something else from torch 2.9 on."""

    def get_tensor(self, full: Tensor, device: torch.device | None = None, dim: int | None = None) -> Tensor:
        return full if len(full) == 1 else full[self.index_list].to(device)

    def add_window(self, full: Tensor, to_add: Tensor, dim: int | None = None) -> Tensor:
        full[self.index_list] += to_add
        return full


class FrameWindows(IndexListContextHandler):
    """The host's context handler, whose windows get their own frames' conditions and continue from one another."""

    layout: str | None = None
    of_one_run = False
    _positive: object = None
    _last_whole: Tensor | None = None

    @classmethod
    def of_run(cls, handler: IndexListContextHandler, layout: str, positive: list[dict]) -> "FrameWindows":
        """A handler for one run with the settings of `handler`, whichever attributes this host's has."""
        own = cls.__new__(cls)
        own.__dict__.update(handler.__dict__)
        own.layout = layout if layout in LAYOUTS else None
        own.of_one_run = True
        own._controls = {}
        own._positive = positive[0].get("uuid") if positive else None
        return own

    def _start(self) -> None:
        """Forget the windows of the step before; and unless the run's end does it, what the graph should not keep."""
        if not self.of_one_run:
            self._controls = {}
        self._predicted: list[Tensor] = []
        self._windows: list[list[int]] = []
        self._begin: Tensor | None = None
        self._followed: list[tuple[Tensor, Tensor]] = []

    def should_use_context(self, model, conds, x_in, timestep, model_options) -> bool:
        looping = self.context_schedule.func is _schedule and self.closed_loop and len(x_in) > 1
        return looping or super().should_use_context(model, conds, x_in, timestep, model_options)

    def set_step(self, timestep: Tensor, model_options: dict) -> None:
        """The nearest step: samplers of second order also ask between two of them, where the host gives up."""
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        self._step = int((sigmas.to(timestep.device) - timestep[0]).abs().argmin())

    def get_context_windows(self, *args: object, **named: object) -> list[IndexListContextWindow]:
        return [FrameWindow(window.index_list, dim=0) for window in super().get_context_windows(*args, **named)]

    def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options) -> list:
        self._start()
        known = [index for index, cond in enumerate(conds) if self._is_positive(cond)]
        present = [index for index, cond in enumerate(conds) if cond is not None]
        self._continued = (known or present or [0])[0]
        self._apart = not known and self._last_whole is not None
        try:
            predicted = super().execute(calc_cond_batch, model, conds, x_in, timestep, model_options)
        finally:
            self._start()
        if self.of_one_run and known:
            self._last_whole = predicted[self._continued]
        return predicted

    def _is_positive(self, cond: list[dict] | None) -> bool:
        # The first entry: to the others the host adds copies from other conditionings, to have areas in both.
        return bool(cond) and self._positive is not None and cond[0].get("uuid") == self._positive

    def evaluate_context_windows(
        self, calc_cond_batch, model, x_in, conds, timestep, windows, model_options, *more, **named
    ):
        frames = list(windows[0][1].index_list)
        self._begin = self._begin_of(frames, len(x_in))
        self._followed = []
        # Packs that keep something for each frame (image prompts, ControlNets) look here for what is sampled now.
        model_options["transformer_options"]["ad_params"] = {
            "sub_idxs": frames,
            "full_length": len(x_in),
            "context_length": len(frames),
        }
        results = super().evaluate_context_windows(
            calc_cond_batch, model, x_in, conds, timestep, windows, model_options, *more, **named
        )
        self._windows.append(frames)
        self._predicted.append(results[0].sub_conds_out[self._continued])
        return results

    def _begin_of(self, frames: list[int], num_frames: int) -> Tensor | None:
        """What the positive conditioning makes of a window's first frame, 1 4 h w; None: that frame is the photo.

        Where the host's windows share no frames, the frame before stands in. Its uniform schedules begin at another
        frame at each step, of which no window knows yet, and some guiders ask for the negative in a call of its own:
        there it is what the last call with the positive made of it.
        """
        if frames[0] == 0:
            return None
        for frame in () if self._apart else (frames[0], frames[0] - 1):
            if any(frame in seen for seen in self._windows):
                weights = [_weights(0, num_frames, window, self) for window in self._windows]
                return blend_windows(self._predicted, self._windows, weights, num_frames, dim=0)[[frame]]
        return None if self._last_whole is None else self._last_whole[frames[:1]]

    def get_resized_cond(self, cond_in, x_in, window, *more, **named):
        resized = super().get_resized_cond(cond_in, x_in, window, *more, **named)
        if cond_in is None:
            return resized
        for entry, own in zip(cond_in, resized, strict=True):
            if "model_conds" in entry:
                cut = {key: self._cut(key, cond, x_in, window) for key, cond in entry["model_conds"].items()}
                own["model_conds"] = {**own["model_conds"], **{k: v for k, v in cut.items() if v is not None}}
            if entry.get("control") is not None:
                own["control"] = self._control_of(entry["control"], len(x_in), window)
        return resized

    def _cut(self, key: str, cond: CONDRegular, x_in: Tensor, window: IndexListContextWindow) -> CONDRegular | None:
        """The window's part of what has something for each frame; None for what has not.

        Raises:
            ValueError: a first-frame condition is for another number of frames.
        """
        if isinstance(cond, CurveCond):
            return CONDRegular(cond.over(len(x_in))[window.index_list])
        if isinstance(cond, FirstFrameCond):
            cond.check(len(x_in))
        tensor = getattr(cond, "cond", None)
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != len(x_in):
            return None
        if key == FIRST_FRAME and self._begin is not None and self.layout is not None:
            begun = self._continued_from(self._begin, tensor[:1].to(x_in.device), window, self.layout)
            return cond._copy_with(begun)
        return cond._copy_with(tensor[window.index_list])

    def _continued_from(self, begin: Tensor, photo: Tensor, window: IndexListContextWindow, layout: str) -> Tensor:
        """The first-frame condition of a window that begins with `begin`; the same for all entries of equal `photo`."""
        for known, begun in self._followed:
            if torch.equal(known, photo):
                return begun
        of_clip = rearrange(photo, "f c h w -> 1 c f h w")
        begun = continued_condition(of_clip, list(window.index_list), begin, layout)
        self._followed.append((photo, rearrange(begun, "1 c f h w -> f c h w")))
        return self._followed[-1][1]

    def _control_of(self, control, num_frames: int, window: IndexListContextWindow):
        """A ControlNet, and those before it, with the hints of the window's frames; kept, so hints are scaled once."""
        key = (id(control), *window.index_list)
        if key not in self._controls:
            own = copy.copy(control)
            hints = control.cond_hint_original
            if isinstance(hints, Tensor) and len(hints) == num_frames:
                own.cond_hint_original = hints[window.index_list]
            own.cond_hint = None
            if hasattr(own, "control_input"):  # what a T2I adapter keeps of its hints
                own.control_input = None
            if control.previous_controlnet is not None:
                own.previous_controlnet = self._control_of(control.previous_controlnet, num_frames, window)
            self._controls[key] = own
        return self._controls[key]
