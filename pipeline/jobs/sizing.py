"""How much a job takes: arithmetic, no measurement. No image is read and no model loaded."""

from __future__ import annotations

import os
import time

import torch

from adu.context import stored_bytes, view_bytes
from adu.data.manifest import FewShotSplit, Manifest
from pipeline.executors.resources import count_executors
from pipeline.jobs.config import SearchConfig
from pipeline.jobs.table_plan import ReproduceConfig

# A training step costs the forward pass and a backward pass without weight gradients; measured,
# see adu/README.md.
STEP_OVER_FORWARD = 2.4

SPEED_SAMPLE_SIZE = 1024

Config = SearchConfig | ReproduceConfig


def few_shot_bytes(manifest: Manifest, split: FewShotSplit, backbone: str) -> int:
    """Memory of the decoded training and validation images, of which a node has one copy."""
    from adu.models.openclip import image_side  # takes seconds, which no search waits for

    image_size = image_side(backbone)
    train = stored_bytes(manifest, split.train_rows, image_size)
    return train + view_bytes(len(split.val_rows), image_size)


def validated_forwards(
    split: FewShotSplit, epochs: int, quick_val_shots: int | None, n_full: int
) -> int:
    """Validation images that a run looks at.

    Args:
        split: The few-shot images.
        epochs: Of the run.
        quick_val_shots: Validation images of each cell after an epoch on which no decision hangs.
        n_full: Epochs after which all are looked at.
    """
    n_val = len(split.val_rows)
    places = split.val_places
    n_quick = n_val if quick_val_shots is None else int((places < quick_val_shots).sum())
    return n_full * n_val + (epochs - n_full) * n_quick


def resources_line(config: Config) -> str:
    """What an executor is."""
    resources = config.resources
    gpus = f" and {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
    return (
        f"resources  an executor is {resources.workers_per_trial} x "
        f"({resources.cpus_per_worker} CPU{gpus}); a run at a time on each"
    )


def sizing_line(config: Config, n_bytes: int) -> str:
    """What all executors take.

    Args:
        config: The job's.
        n_bytes: Of the decoded images, on each node.
    """
    resources, n, workers = config.resources, n_executors(config), n_workers(config)
    return (
        f"sizing     {n} executor{'s' * (n > 1)}: {workers * resources.cpus_per_worker} CPU and "
        f"{workers * resources.gpus_per_worker:g} GPU; each node holds "
        f"{n_bytes / 2**30:.2g} GiB of decoded images, each worker the model"
    )


def n_executors(config: Config) -> int:
    """As many as are asked for, or fit on this machine if it runs here."""
    if config.resources.executors is not None:
        return config.resources.executors
    if _runs_elsewhere(config):
        return 1
    return count_executors(config.resources, [{"CPU": float(os.cpu_count() or 1)}])


def n_workers(config: Config) -> int:
    """Workers of all executors."""
    return n_executors(config) * config.resources.workers_per_trial


def forwards_per_s(config: Config) -> float | None:
    """Forward passes a second of one worker, if there is a way to know."""
    from adu.models.openclip import forward_flops

    if config.images_per_s is not None:
        return config.images_per_s * STEP_OVER_FORWARD
    if _runs_elsewhere(config):
        return None
    return _flops_per_s() / forward_flops(config.context.backbone.name)


def unit_hours(config: Config, forwards: float, per_s: float) -> str:
    """What is paid for so many forward passes, at so many a second of one worker."""
    gpus_per_worker = config.resources.gpus_per_worker
    unit = "GPU" if gpus_per_worker else "worker"
    hours = forwards / per_s / 3600 * (gpus_per_worker or 1)
    return f"{hours:,.0f} {unit}-hours" if hours >= 1000 else f"{hours:.3g} {unit}-hours"


def source(config: Config) -> str:
    """Where `forwards_per_s` is from."""
    if config.images_per_s is not None:
        return f"arithmetic from {config.images_per_s:g} training images a second and worker"
    return (
        "arithmetic from the model's size and this machine's speed; expect it within a factor of "
        "two"
    )


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _runs_elsewhere(config: Config) -> bool:
    resources = config.resources
    return bool(config.address or resources.autoscale or resources.gpus_per_worker)


def _flops_per_s() -> float:
    """What one core does with matrices."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.rand(SPEED_SAMPLE_SIZE, SPEED_SAMPLE_SIZE)
        _ = a @ a
        started_at = time.perf_counter()
        _ = a @ a
        return 2 * SPEED_SAMPLE_SIZE**3 / (time.perf_counter() - started_at)
    finally:
        torch.set_num_threads(n_threads)
