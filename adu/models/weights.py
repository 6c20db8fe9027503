"""Whether a loaded model's weights are those of its file, whole and finite."""

from __future__ import annotations

import torch
from safetensors import safe_open
from torch import nn

from adu.errors import UserError


def check_grid(name: str, clip: nn.Module, file: str) -> None:
    """Checks that positional embeddings are those of the file.

    open_clip resizes them to the model's, and says so to nobody: that is another model, which
    without training is a worse one.

    Raises:
        UserError: Naming the weight, its shape and the model's.
    """
    stored = _stored_shapes(file)
    for key, values in clip.state_dict().items():
        is_grid = key.endswith("positional_embedding")
        if is_grid and stored.get(key, values.shape) != values.shape:
            found, wanted = (" x ".join(map(str, s)) for s in (stored[key], values.shape))
            raise UserError(
                f"backbone '{name}': its weight {key} is {found}, the architecture's {wanted}: "
                "they are of a model for another image size or caption length"
            )


def check_finite(name: str, clip: nn.Module) -> None:
    """Checks that every weight is a finite number.

    Raises:
        UserError: Naming the first that is not.
    """
    for key, weight in clip.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"backbone '{name}': its weight {key} holds NaN or infinity")


def _stored_shapes(file: str) -> dict[str, torch.Size]:
    """The shapes of a file's weights; none of them is read. Big Vision's files have other names."""
    if file.endswith((".npz", ".npy")):
        return {}
    if file.endswith(".safetensors"):
        with safe_open(file, "pt") as weights:
            return {key: torch.Size(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    saved = torch.load(file, map_location="meta", weights_only=True)
    weights = saved.get("state_dict", saved)
    return {
        key.removeprefix("module."): value.shape
        for key, value in weights.items()
        if isinstance(value, torch.Tensor)
    }
