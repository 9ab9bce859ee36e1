"""magicvideo's nodes for ComfyUI."""

from .nodes import MagicVideoExtension


async def comfy_entrypoint() -> MagicVideoExtension:
    """Return the extension that ComfyUI loads."""
    return MagicVideoExtension()


__all__ = ["comfy_entrypoint"]
