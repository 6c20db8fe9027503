"""What a training step costs against the frozen forward pass alone, on the same batch.

    python -m tests.benchmarks.train_speed

Frozen weights need no gradient, so a step should take no more than twice the forward's time: one
pass forward, and one backward for the activations. Prints the ratio to that limit, for ADU with
its defaults; reading and augmentation apart; on a GPU also the share of the card's matrix rate
that is reached, and peak memory. The last line is the same as JSON. Runs without Ray.

Tensor names carry their shape: B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adu.data.decoded import ImageSet, ImageTransform, train_batch
from adu.data.images import decode_image
from adu.demo.dataset import write_images
from adu.methods import Method, Task
from adu.methods.adu import Adu, AduConfig
from adu.models.backbone import DEFAULT_TEMPLATE, Backbone, BackboneConfig
from adu.models.openclip import load_backbone
from adu.models.towers import open_tower

DOMAINS = ("art", "clipart", "photo", "sketch")
N_CLASSES = 65  # Office-Home's
LIMIT = 2.0  # times the forward alone
MATRIX_SIZE = 8192


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        ratio: Time of a step over `LIMIT` times that of the forward.
        matrix_share: Share of the measured matrix rate that the step reaches; GPU only.
        peak_gib: Most memory that was allocated; GPU only.
    """

    model: str
    precision: str
    batch: int
    compiled: bool
    forward_images_per_s: float
    step_images_per_s: float
    ratio: float
    matrix_share: float | None = None
    peak_gib: float | None = None


def random_backbone(architecture: str) -> Backbone:
    """An open_clip model with random weights, which cost the same time as trained ones."""
    torch.manual_seed(0)
    clip = open_clip.create_model(architecture).eval().requires_grad_(False)
    size = clip.visual.image_size
    size = size if isinstance(size, int) else size[0]
    transform = ImageTransform(size, (0.5,) * 3, (0.5,) * 3)
    tokenizer = open_clip.get_tokenizer(architecture)
    return Backbone(architecture, clip, open_tower(clip.visual, architecture), tokenizer, transform)


def build(backbone: Backbone, device: torch.device) -> Method:
    """ADU on a made-up task of Office-Home's size."""
    backbone.clip.to(device)
    classes = tuple(f"class {number}" for number in range(N_CLASSES))
    text_CE = backbone.text_features(classes, DEFAULT_TEMPLATE)
    task = Task(classes, DOMAINS, DOMAINS[:1], text_CE)
    return Adu(AduConfig(), backbone, task).to(device).train()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, with all that it has set going on the device."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(
    backbone: Backbone,
    precision: str,
    batch: int,
    repeats: int,
    device: torch.device,
    compiled: bool,
    matrix_rate: float | None,
) -> Figure:
    """Times steps and forwards in turn, and takes the medians."""
    model = build(backbone, device)
    parameters = list(model.trainable().values())
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
    size = backbone.transform.image_size
    images_BCHW = torch.randn(batch, 3, size, size, device=device)
    class_B = torch.arange(batch, device=device) % N_CLASSES
    domain_B = torch.arange(batch, device=device) % len(DOMAINS)
    run = torch.compile(model) if compiled else model
    encode = torch.compile(backbone.clip.encode_image) if compiled else backbone.clip.encode_image

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    @torch.no_grad()
    def forward() -> Tensor:
        with autocast():
            return encode(images_BCHW)

    def step() -> None:
        with autocast():
            output = run(images_BCHW)
        losses = model.losses(output, class_B, domain_B)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()

    for warm_up in (forward, step, forward, step):
        seconds(warm_up, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    forward_s, step_s = [], []
    for _ in range(repeats):
        forward_s.append(seconds(forward, device))
        step_s.append(seconds(step, device))
    one_forward_s, one_step_s = statistics.median(forward_s), statistics.median(step_s)
    share, peak_gib = None, None
    if matrix_rate is not None:
        share = flops(model, images_BCHW, class_B, domain_B) / one_step_s / matrix_rate
        peak_gib = torch.cuda.max_memory_allocated() / 2**30
    return Figure(
        backbone.name,
        precision,
        batch,
        compiled,
        batch / one_forward_s,
        batch / one_step_s,
        one_step_s / (LIMIT * one_forward_s),
        share,
        peak_gib,
    )


def flops(model: Method, images_BCHW: Tensor, class_B: Tensor, domain_B: Tensor) -> float:
    """Floating-point operations of a step, counted."""
    with FlopCounterMode(display=False) as counter:
        model.losses(model(images_BCHW), class_B, domain_B)["total"].backward()
    return float(counter.get_total_flops())


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations a second of a large product in bf16."""
    a, b = (
        torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=torch.bfloat16) for _ in "ab"
    )
    times_s = [seconds(lambda: a @ b, device) for _ in range(20)]
    return 2 * MATRIX_SIZE**3 / statistics.median(times_s)


def data_rates(batch: int) -> dict[str, float]:
    """Images a second that one process reads (opens and decodes), and augments for 224 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), images_per_cell=2, seed=0)
        files = sorted(Path(folder).rglob("*.png"))[:batch]
        started = time.perf_counter()
        images = [decode_image(file.read_bytes(), file.name) for file in files]
        read_s = time.perf_counter() - started
    names, zeros = [file.name for file in files], [0] * len(files)
    data = ImageSet([np.asarray(image) for image in images], names, zeros, zeros)
    transform = ImageTransform(224, (0.5,) * 3, (0.5,) * 3)
    started = time.perf_counter()
    train_batch(data, range(len(images)), transform, seed=0, epoch=0)
    augment_s = time.perf_counter() - started
    return {
        "read_images_per_s": len(images) / read_s,
        "augment_images_per_s": len(images) / augment_s,
    }


def cases(device: torch.device) -> list[tuple[str, str, int, bool]]:
    """Model, precision, batch, compiled. Small where there is no GPU."""
    large = "ViT-B-16-quickgelu"
    on_gpu = device.type == "cuda"
    batches = {"demo": (32, 128), large: (32, 128) if on_gpu else (4, 8)}
    plain = [
        (name, precision, batch, False)
        for name, sizes in batches.items()
        for precision in ("fp32", "bf16")
        # Many CPUs have no bf16 of their own, and take seconds an image.
        for batch in (sizes if on_gpu or precision == "fp32" or name == "demo" else sizes[:1])
    ]
    return plain + ([(large, "bf16", 256, True)] if on_gpu else [])


def describe(figure: Figure) -> str:
    """A figure as a line of the table."""
    line = (
        f"{figure.model:20} {figure.precision:5} {figure.batch:5}"
        f"{' compiled' if figure.compiled else '         '}"
        f"{figure.forward_images_per_s:12.1f} {figure.step_images_per_s:12.1f} {figure.ratio:8.2f}"
    )
    if figure.matrix_share is not None:
        line += (
            f"   {100 * figure.matrix_share:.0f} % of the matrix rate, {figure.peak_gib:.1f} GiB"
        )
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matrix_rate(device) if device.type == "cuda" else None
    machine = torch.cuda.get_device_name() if rate else f"{torch.get_num_threads()} CPU cores"
    print(f"{machine}, torch {torch.__version__}, {platform.machine()}")
    header = ("forward/s", "step/s", "step / (2 x forward)")
    print(f"{'model':20} {'':5} {'batch':>5}{'':9}{header[0]:>12} {header[1]:>12} {header[2]:>8}")
    backbones: dict[str, Backbone] = {}
    figures = []
    for name, precision, batch, compiled in cases(device):
        if name not in backbones:
            is_demo = name == "demo"
            backbones[name] = (
                load_backbone(BackboneConfig(), device) if is_demo else random_backbone(name)
            )
        figure = measure(
            backbones[name], precision, batch, arguments.repeats, device, compiled, rate
        )
        print(describe(figure), flush=True)
        figures.append(asdict(figure))
    data = data_rates(64)
    print(", ".join(f"{name} {value:.0f}" for name, value in data.items()))
    print(json.dumps({"machine": machine, "torch": torch.__version__, "steps": figures, **data}))


if __name__ == "__main__":
    main()
