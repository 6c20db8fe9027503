"""In which precision a model sees images."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Within it models see images so; class scores are computed in fp32 all the same."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
