"""Pre-train the tiny CLIP that is embedded as the default model.

    python -m adu.demo.pretrain

About 20 minutes on two cores with bf16 matrix units. Writes an open_clip folder and `card.json`.

Shape suffixes: N = pictures, B = batch, C = colour channels, H = height, W = width, U = distinct
captions of a batch, L = caption length in tokens, E = embedding.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adu.demo import WEIGHTS_DIR
from adu.demo.captions import CaptionBook
from adu.demo.dataset import PRETRAIN_SEED_START
from adu.demo.quality import EVALUATION_SEED, feature_report, zero_shot_accuracy
from adu.demo.render import CLASSES, DOMAINS, render

# Patches of 8 pixels in a narrow tower: about 1.5 ms an image on one core, as a search needs.
# The text tower is narrow because its 49,408 token embeddings are most of the file's size.
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 64,
        "layers": 6,
        "width": 96,
        "head_width": 32,
        "patch_size": 8,
        "mlp_ratio": 4.0,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
WARM_UP_SHARE = 0.08
DOMAIN_CAPTION_SHARE = 0.2
MAX_SHIFT_PX = 4
MAX_LOGIT_SCALE = math.log(100)


def write_config(folder: Path) -> None:
    """Write the open_clip configuration that names the architecture and the pre-processing."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def render_training_set(images_per_cell: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the training pictures into memory.

    Returns:
        Bytes of the pictures (images_NCHW), their class numbers and their domain numbers.
    """
    pictures: list[NDArray[np.uint8]] = []
    classes: list[int] = []
    domains: list[int] = []
    for domain_number, domain in enumerate(DOMAINS):
        for class_number, class_name in enumerate(CLASSES):
            for index in range(images_per_cell):
                picture = render(domain, class_name, index, PRETRAIN_SEED_START + seed)
                pictures.append(np.asarray(picture))
                classes.append(class_number)
                domains.append(domain_number)
    images_NHWC = torch.from_numpy(np.stack(pictures))
    images_NCHW = images_NHWC.permute(0, 3, 1, 2).contiguous()
    return images_NCHW, torch.tensor(classes), torch.tensor(domains)


def augment(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures, shift the batch a few pixels and vary its contrast."""
    batch = images_BCHW.shape[0]
    mirrored_B = torch.rand(batch, generator=generator) < 0.5
    flipped_BCHW = torch.where(mirrored_B[:, None, None, None], images_BCHW.flip(3), images_BCHW)
    pixels_BCHW = flipped_BCHW.float() / 255
    pad = MAX_SHIFT_PX
    padded_BCHW = F.pad(pixels_BCHW, (pad, pad, pad, pad), mode="replicate")
    top, left = torch.randint(0, 2 * pad + 1, (2,), generator=generator).tolist()
    size = images_BCHW.shape[2]
    shifted_BCHW = padded_BCHW[:, :, top : top + size, left : left + size]
    gain_B = 0.85 + 0.3 * torch.rand(batch, generator=generator)
    return (shifted_BCHW * gain_B[:, None, None, None]).clamp(0, 1)


def normalise(pixels_BCHW: Tensor) -> Tensor:
    """Apply the mean and deviation that the configuration names."""
    mean_C = torch.tensor(PREPROCESS_CONFIG["mean"])[:, None, None]
    std_C = torch.tensor(PREPROCESS_CONFIG["std"])[:, None, None]
    return (pixels_BCHW - mean_C) / std_C


class CaptionSampler:
    """Draws one true caption for each picture of a batch."""

    def __init__(self, folder: Path) -> None:
        book = CaptionBook()
        self.tokens_L = open_clip.get_tokenizer(f"local-dir:{folder}")(book.texts)
        self.classes = torch.tensor(book.classes)
        self.domains = torch.tensor(book.domains)

    def draw(self, classes_B: Tensor, domains_B: Tensor, generator: torch.Generator) -> Tensor:
        """Numbers of the captions drawn, one a picture; most do not name the domain."""
        named_B = torch.rand(len(classes_B), generator=generator) < DOMAIN_CAPTION_SHARE
        wanted_B = torch.where(named_B, domains_B, torch.full_like(domains_B, -1))
        fits = (self.classes == classes_B[:, None]) & (self.domains == wanted_B[:, None])
        return torch.multinomial(fits.float(), 1, generator=generator).squeeze(1)

    def is_true(self, captions_U: Tensor, classes_B: Tensor, domains_B: Tensor) -> Tensor:
        """Which captions hold for which pictures (truth_BU, as 0 and 1)."""
        same_class_BU = self.classes[captions_U] == classes_B[:, None]
        named_U = self.domains[captions_U]
        same_domain_BU = (named_U == domains_B[:, None]) | (named_U == -1)
        return (same_class_BU & same_domain_BU).float()


def contrastive_loss(logits_BU: Tensor, truth_BU: Tensor, counts_U: Tensor) -> Tensor:
    """CLIP's symmetric loss where several captions may be true of a picture and vice versa.

    Args:
        logits_BU: Scaled similarity of every picture to every distinct caption.
        truth_BU: 1 where the caption is true of the picture.
        counts_U: How often each distinct caption was drawn; it weighs the caption.
    """
    weighted_BU = truth_BU * counts_U
    image_target_BU = weighted_BU / weighted_BU.sum(dim=1, keepdim=True)
    image_loss = -(image_target_BU * logits_BU.log_softmax(dim=1)).sum(dim=1).mean()
    text_target_BU = truth_BU / truth_BU.sum(dim=0, keepdim=True)
    per_caption_U = -(text_target_BU * logits_BU.log_softmax(dim=0)).sum(dim=0)
    text_loss = (per_caption_U * counts_U).sum() / counts_U.sum()
    return (image_loss + text_loss) / 2


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm_up = max(1, int(steps * WARM_UP_SHARE))
    if step < warm_up:
        return PEAK_LEARNING_RATE * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, and none on embeddings: unseen tokens must stay put."""
    decayed: list[torch.nn.Parameter] = []
    kept: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and "embedding" not in name
        (decayed if is_matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98))


def train(folder: Path, epochs: int, images_per_cell: int, seed: int) -> open_clip.CLIP:
    """Train from scratch on renders and their captions."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images_NCHW, classes_N, domains_N = render_training_set(images_per_cell, seed)
    model = open_clip.CLIP(**MODEL_CONFIG)
    sampler = CaptionSampler(folder)
    optimizer = make_optimizer(model)
    batches = len(images_NCHW) // BATCH_SIZE
    steps = epochs * batches
    for epoch in range(epochs):
        started = time.monotonic()
        total = 0.0
        order_N = torch.randperm(len(images_NCHW), generator=generator)
        for batch in range(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * batches + batch, steps)
            picks_B = order_N[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE]
            pixels_BCHW = normalise(augment(images_NCHW[picks_B], generator))
            labels_B, styles_B = classes_N[picks_B], domains_N[picks_B]
            loss = batch_loss(model, sampler, pixels_BCHW, labels_B, styles_B, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.logit_scale.data.clamp_(0, MAX_LOGIT_SCALE)
            total += loss.item()
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1}/{epochs} loss {total / batches:.4f} {seconds:.0f} s", flush=True)
    return model


def batch_loss(
    model: open_clip.CLIP,
    sampler: CaptionSampler,
    pixels_BCHW: Tensor,
    classes_B: Tensor,
    domains_B: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Draw captions for a batch and compare them with its pictures."""
    captions_B = sampler.draw(classes_B, domains_B, generator)
    captions_U, counts_U = captions_B.unique(return_counts=True)
    # bf16 matrix products are about 2.5 times as fast as fp32 on the CPUs that have them. There the
    # fused attention's backward pass costs more than the rest of the step; plain products do not.
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=torch.bfloat16):
        images_BE = model.encode_image(pixels_BCHW, normalize=True)
        texts_UE = model.encode_text(sampler.tokens_L[captions_U], normalize=True)
    logits_BU = model.logit_scale.exp() * images_BE.float() @ texts_UE.float().T
    truth_BU = sampler.is_true(captions_U, classes_B, domains_B)
    return contrastive_loss(logits_BU, truth_BU, counts_U.float())


def save_weights(model: open_clip.CLIP, folder: Path) -> None:
    """Store the weights in half precision; loading turns them back into float32."""
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def write_card(
    folder: Path, settings: dict[str, int], seconds: float, images_per_cell: int = 100
) -> dict[str, Any]:
    """Evaluate the saved weights on unseen renders and store the figures beside them."""
    card = {
        "data": "synthetic: drawn by adu.demo.render, no real image",
        "settings": settings,
        "pretraining_wall_time_s": round(seconds),
        "evaluation_seed": EVALUATION_SEED,
        "zero_shot_accuracy": zero_shot_accuracy(folder, images_per_cell),
        "features": feature_report(folder, images_per_cell),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def main() -> None:
    """Pre-train, save, evaluate, and print the card."""
    parser = argparse.ArgumentParser(description="Pre-train the tiny CLIP on synthetic pictures.")
    parser.add_argument("--out", type=Path, default=WEIGHTS_DIR, help="folder to write")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images-per-cell", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # The order of sums depends on the number of threads; fixing it keeps runs alike.
    torch.set_num_threads(2)
    started = time.monotonic()
    write_config(arguments.out)
    model = train(arguments.out, arguments.epochs, arguments.images_per_cell, arguments.seed)
    save_weights(model, arguments.out)
    settings = {
        "epochs": arguments.epochs,
        "images_per_cell": arguments.images_per_cell,
        "seed": arguments.seed,
    }
    card = write_card(arguments.out, settings, time.monotonic() - started)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
