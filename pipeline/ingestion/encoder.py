"""What a frozen model makes of images while they are read: features, by which styles are told.

Array and tensor names carry their shape: B images of a batch, S the model's image size, E feature
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from adu.data.preprocess import normalised, view
from adu.models.backbone import BackboneConfig
from adu.models.openclip import load_backbone

# Batches always have this size, since the bits of a feature may depend on it: what is read together
# then changes nothing.
BATCH_SIZE = 16
STORED = np.dtype("<f2")


class Encoder:
    """A frozen model, as ingest uses it.

    Args:
        name: As in `adu.models.backbone.BackboneConfig`.

    Raises:
        UserError: If there is no such model, or it cannot be used.
    """

    batch_size = BATCH_SIZE

    def __init__(self, name: str) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._backbone = load_backbone(BackboneConfig(name=name), self._device)

    def view(self, image: Image.Image) -> np.ndarray:
        """What the model sees of an image, (S, S, channels)."""
        return view(image, self._backbone.transform)

    @torch.no_grad()
    def features(self, views: Sequence[np.ndarray]) -> list[bytes]:
        """Unit-length features of at most `BATCH_SIZE` views, as numbers of two bytes."""
        batch_BSSC = np.zeros((BATCH_SIZE, *views[0].shape), np.uint8)
        batch_BSSC[: len(views)] = views
        views_BCSS = torch.from_numpy(batch_BSSC).permute(0, 3, 1, 2).to(self._device)
        images_BCSS = normalised(views_BCSS, self._backbone.transform)
        features_BE = F.normalize(self._backbone.clip.encode_image(images_BCSS).float(), dim=-1)
        stored_BE = features_BE.cpu().numpy().astype(STORED)
        return [stored_E.tobytes() for stored_E in stored_BE[: len(views)]]


@cache
def encoder_of(name: str) -> Encoder:
    """The model of that name, loaded once a process."""
    return Encoder(name)


def stored_features(stored: Sequence[bytes]) -> np.ndarray:
    """What `Encoder.features` gave, (N, E), in double precision."""
    return np.frombuffer(b"".join(stored), STORED).reshape(len(stored), -1).astype(np.float64)
