"""A CLIP with some of its own weights set free, and nothing new.

The backbone is shared and stays as it is: the tuned weights are copies, put in their places for the
length of a call. They make another open_clip model, whole in itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from adu.methods.base import Method, Task
from adu.models.backbone import Backbone

IMAGE_TOWER = "visual."


class TunedClip(Method):
    """What methods have in common that train weights of the model itself.

    Args:
        backbone: The frozen model.
        task: What is to be unlearned.
        names: Of the weights, as in the open_clip model.
    """

    def __init__(self, backbone: Backbone, task: Task, names: Sequence[str]) -> None:
        super().__init__(backbone, task)
        frozen = dict(backbone.clip.named_parameters())
        self.tuned = nn.ParameterDict({_key(name): frozen[name].detach().clone() for name in names})
        self._names = tuple(names)
        self._calls = {what: _Call(backbone.clip, what) for what in ("image", "text")}

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """features_BE with the tuned weights."""
        return self.encoded("image", images_BCHW)

    def encoded(self, what: str, inputs: Tensor) -> Tensor:
        """What a tower, image or text, gives with the tuned weights."""
        in_place: dict[str, Tensor] = {f"clip.{name}": self.weight(name) for name in self._names}
        return functional_call(self._calls[what], in_place, inputs)

    def weight(self, name: str) -> nn.Parameter:
        """A tuned weight."""
        return self.tuned[_key(name)]

    def open_clip_weights(self) -> dict[str, Tensor]:
        """The tuned weights."""
        return {name: self.weight(name).detach() for name in self._names}


class _Call(nn.Module):
    """One of CLIP's two towers as a module, which is what `functional_call` takes."""

    def __init__(self, clip: nn.Module, what: str) -> None:
        super().__init__()
        self.clip: Any = clip
        self._what = what

    def forward(self, inputs: Tensor) -> Tensor:
        encode = self.clip.encode_image if self._what == "image" else self.clip.encode_text
        return encode(inputs)


def _key(name: str) -> str:
    # A parameter's name may hold no dots.
    return name.replace(".", "/")
