"""Approximate Domain Unlearning on open_clip models, in plain PyTorch.

    import adu

    model = adu.unlearn("photos/", forget="sketch", backbone="ViT-B-16-quickgelu:openai")
    print(model.scores.h)
    adu.save(model, "without-sketch.safetensors")

What stands in `__all__` is for everybody (`adu.api`); the rooms below it are in README.md.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "UnlearnedModel",
    "UserError",
    "evaluate",
    "export_onnx",
    "export_open_clip",
    "load",
    "load_backbone",
    "open_images",
    "save",
    "unlearn",
]

if TYPE_CHECKING:
    from adu.api import (
        Classifier,
        UnlearnedModel,
        UserError,
        evaluate,
        export_onnx,
        export_open_clip,
        load,
        load_backbone,
        open_images,
        save,
        unlearn,
    )


def __getattr__(name: str) -> Any:
    """Imports PyTorch and open_clip with the first thing that is asked for, not before."""
    if name not in __all__:
        raise AttributeError(f"module 'adu' has no attribute '{name}'")
    from adu import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
