"""Nodes that look into a sampling, or disturb it."""

import ctypes
import gc
from pathlib import Path

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

watched: list[dict] = []


def modules_with_hooks() -> list[str]:
    gc.collect()
    modules = [found for found in gc.get_objects() if isinstance(found, torch.nn.Module)]
    return [type(module).__name__ for module in modules if module._forward_hooks or module._forward_pre_hooks]


def memory_bytes() -> int:
    """What the process holds, without the free pages that its heap keeps between what is in use (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class _OfModel:
    """A node that changes how a MODEL is sampled."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", "testing"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",)}}


class WatchCalls(_OfModel):
    """Notes each UNet call for the route /testing/calls."""

    def patch(self, model):
        def note(executor, x, *args, **kwargs):
            options = next(value for value in args if isinstance(value, dict) and "cond_or_uncond" in value)
            watched.append({"shape": list(x.shape), "entries": list(options["cond_or_uncond"])})
            return executor(x, *args, **kwargs)

        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "testing", note)
        return (patched,)


class ShortOfMemory(_OfModel):
    """While it samples, the host finds no free memory, so it may not batch entries."""

    def patch(self, model):
        def no_memory(device=None, torch_free_too=False):
            return (0, 0) if torch_free_too else 0

        def sample(executor, *args, **kwargs):
            real = comfy.model_management.get_free_memory
            comfy.model_management.get_free_memory = no_memory
            try:
                return executor(*args, **kwargs)
            finally:
                comfy.model_management.get_free_memory = real

        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "testing", sample)
        return (patched,)


class NoVideoMemory(_OfModel):
    """While it samples, the host holds no weights on its device, as with --novram: each layer fetches its own."""

    def patch(self, model):
        def sample(executor, *args, **kwargs):
            memory = comfy.model_management
            state, is_cpu = memory.vram_state, memory.is_device_cpu
            memory.unload_all_models()
            memory.vram_state, memory.is_device_cpu = memory.VRAMState.NO_VRAM, lambda device: False
            try:
                return executor(*args, **kwargs)
            finally:
                watched.append({"streamed": bool(executor.class_obj.model_patcher.model.model_lowvram)})
                memory.vram_state, memory.is_device_cpu = state, is_cpu
                memory.unload_all_models()

        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "testing", sample)
        return (patched,)


class InterruptAtStep(_OfModel):
    """Does within a step what the route /interrupt does: in exactly this one, however fast the machine is."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",), "step": ("INT", {"default": 0})}}

    def patch(self, model, step: int):
        calls = 0

        def count(args):
            nonlocal calls
            if calls == step:
                comfy.model_management.interrupt_current_processing()
            calls += 1
            return args["denoised"]

        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(count)
        return (patched,)


class FailOnce:
    """A motion model whose modules fail at one call, as where memory runs out: that is inside the pack's hooks."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("FOLLOWCLICK_MOTION_MODEL",), "patch", "testing"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "motion_model": ("FOLLOWCLICK_MOTION_MODEL",),
                "error": (["RuntimeError", "OutOfMemoryError"],),
                "call": ("INT", {"default": 0}),
            }
        }

    def patch(self, motion_model, error: str, call: int):
        kind = torch.cuda.OutOfMemoryError if error == "OutOfMemoryError" else RuntimeError
        modules = [module for module in motion_model.model.modules() if type(module).__name__ == "MotionModule"]
        module, calls = modules[len(modules) // 2], 0

        def fail(*_):
            nonlocal calls
            calls += 1
            if calls > call:
                handle.remove()
                raise kind("raised by a test inside a motion module")

        handle = module.register_forward_pre_hook(fail)
        return (motion_model,)
