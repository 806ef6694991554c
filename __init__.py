"""ComfyUI loads the pack here; everything else is in `nodes` and `followclick_core`."""

from .nodes import FollowClickExtension

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> FollowClickExtension:
    return FollowClickExtension()
