"""Which image towers take prompts, and the way into each kind."""

from __future__ import annotations

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from adu.errors import UserError
from adu.models.tower import EvaTower, TimmTower, Tower, ViTTower


def open_tower(visual: nn.Module, name: str) -> Tower:
    """Opens an image tower for prompts.

    Raises:
        UserError: If the tower is of a kind that cannot take tokens.
    """
    if isinstance(visual, VisionTransformer):
        return ViTTower(visual)
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    # Exactly these: what inherits from them may well do something else between its blocks.
    if type(trunk) is TimmVisionTransformer:
        return TimmTower(visual)
    if type(trunk) is Eva:
        return EvaTower(visual)
    raise UserError(
        f"backbone {name}: its image tower is a {type(trunk).__name__}, which takes no prompts "
        f"(allowed: {', '.join(promptable_architectures())})"
    )


def promptable_architectures() -> list[str]:
    """The names of open_clip's models whose image tower takes prompts."""
    return [name for name in open_clip.list_models() if _takes_prompts(name)]


def _takes_prompts(architecture: str) -> bool:
    vision = open_clip.get_model_config(architecture)["vision_cfg"]
    timm_name = vision.get("timm_model_name")
    if timm_name is None:
        return isinstance(vision.get("layers", 12), int)
    return timm_name.startswith(("vit_", "eva"))
