"""Other inputs: pictures of the forgotten domain, moved a little towards the kept ones.

Tensor names carry their shape: B images, C channels, S the model's height and width. Pixels are
float32 from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Pictures, PixelChange, Subject

# Of red, green and blue in brightness (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Images of each domain and class that say what a domain looks like.
STATISTICS_OF = 4


class Inputs(Attack):
    """Changes the pixels of the forgotten domain's pictures."""

    title: ClassVar[str] = "other inputs"
    asks: ClassVar[str] = "Does it recognise them once they look a little more like kept ones?"

    blends: tuple[float, ...] = Field(
        (0.25, 0.5), description="share of the kept domains' mean picture, which shows no class"
    )
    contrast: float = Field(0.6, gt=0, description="factor on the contrast")

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        material, test = subject.material, subject.forgotten_test
        mean_kept_CSS, std_kept_CSS = _statistics(material.kept(material.pool))
        changes: dict[str, PixelChange] = {
            "grey": grey,
            "edges": edges,
            "inverted": lambda pixels_BCSS: 255 - pixels_BCSS,
            "contrast": partial(with_contrast, factor=self.contrast),
            "half the resolution": half_resolution,
            "kept statistics": restyled(mean_kept_CSS, std_kept_CSS),
        }
        for share in self.blends:
            changes[f"{share:.0%} kept"] = blended(mean_kept_CSS, share)
        recovered = {
            name: material.accuracy(subject.model, test, change) for name, change in changes.items()
        }
        to_forgotten = restyled(*_statistics(material.forgotten(material.pool)))
        kept_test = material.kept(material.test)
        others = {
            "kept, in forgotten statistics": material.accuracy(
                subject.model, kept_test, to_forgotten
            )
        }
        return Figures(recovered, others)


def grey(pixels_BCSS: Tensor) -> Tensor:
    """Brightness in all channels."""
    luma_C11 = torch.tensor(LUMA)[:, None, None]
    return (pixels_BCSS * luma_C11).sum(dim=1, keepdim=True).expand_as(pixels_BCSS)


def edges(pixels_BCSS: Tensor) -> Tensor:
    """Dark lines where the brightness changes (Sobel), on white."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([across, across.T])[:, None]
    padded = F.pad(grey(pixels_BCSS)[:, :1], (1, 1, 1, 1), mode="replicate")
    strength_B1SS = F.conv2d(padded, kernels).norm(dim=1, keepdim=True)
    return (255 - strength_B1SS).expand_as(pixels_BCSS)


def with_contrast(pixels_BCSS: Tensor, factor: float) -> Tensor:
    """Distances from each image's mean brightness, scaled."""
    mean_B111 = grey(pixels_BCSS).mean(dim=(1, 2, 3), keepdim=True)
    return mean_B111 + factor * (pixels_BCSS - mean_B111)


def half_resolution(pixels_BCSS: Tensor) -> Tensor:
    """Half the pixels in each direction, and back."""
    small = F.interpolate(pixels_BCSS, scale_factor=0.5, mode="bilinear", antialias=True)
    return F.interpolate(small, size=pixels_BCSS.shape[-2:], mode="bilinear")


def restyled(mean_CSS: Tensor, std_CSS: Tensor) -> Callable[[Tensor], Tensor]:
    """Gives each image's channels the mean and deviation of other pictures.

    As AdaIN does to features (Huang & Belongie, ICCV 2017), on pixels.
    """
    wanted_mean, wanted_std = (
        each.mean(dim=(-2, -1))[:, None, None] for each in (mean_CSS, std_CSS)
    )

    def change(pixels_BCSS: Tensor) -> Tensor:
        mean = pixels_BCSS.mean(dim=(-2, -1), keepdim=True)
        std = pixels_BCSS.std(dim=(-2, -1), keepdim=True).clamp(min=1)
        return (pixels_BCSS - mean) / std * wanted_std + wanted_mean

    return change


def blended(mean_CSS: Tensor, share: float) -> Callable[[Tensor], Tensor]:
    """Mixes each image with another one."""
    return lambda pixels_BCSS: (1 - share) * pixels_BCSS + share * mean_CSS


def _statistics(pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Mean picture, and each channel's mean deviation within a picture; of a few of each cell."""
    some = pictures.first(STATISTICS_OF)
    pixels_BCSS = some.pixels(range(len(some)))
    std_C11 = pixels_BCSS.std(dim=(-2, -1), keepdim=True).mean(dim=0)
    return pixels_BCSS.mean(dim=0), std_C11
