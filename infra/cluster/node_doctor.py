"""Says what a laptop or a node lacks for searches."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from infra.cluster.doctor import Finding
from infra.stack.ports import is_free

GIB = 2**30
# Ray's object store and decoded images.
SHM_GIB = 2
# A worker keeps sockets to all others, and mapped files.
FILES = 4096
DISK_GIB = 10
# Ray's head and MLflow, as `ray start --head` and `mlflow ui` take them.
PORTS = {6379: "Ray's control store", 8265: "Ray's dashboard", 5000: "MLflow"}


def examine_node(folder: Path) -> Iterator[Finding]:
    """Looks at this machine.

    Args:
        folder: Where results and temporary files will lie.
    """
    yield _shared_memory(Path("/dev/shm"))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < FILES
    yield Finding("open files", f"{soft}: raise it (ulimit -n {FILES})" if few else "")
    for port, what in PORTS.items():
        taken = f"port {port} is taken: give another one"
        yield Finding(what, "" if is_free(port) else taken, fatal=False)
    yield _disk(folder)
    yield _driver()


def _shared_memory(place: Path) -> Finding:
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding(
            "shared memory", f"{place} cannot be written: images are decoded for each worker"
        )
    free = shutil.disk_usage(place).free / GIB
    small = f"{free:.1f} GiB free in {place}: {SHM_GIB} GiB at least (docker run --shm-size)"
    return Finding("shared memory", small if free < SHM_GIB else "", fatal=False)


def _disk(folder: Path) -> Finding:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free / GIB
    few = f"{free:.1f} GiB free in {there}: {DISK_GIB} GiB at least"
    return Finding("disk", few if free < DISK_GIB else "", fatal=False)


def _driver() -> Finding:
    """NVIDIA's driver, where there is a card."""
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidia0").exists():
        return Finding("GPU driver", "no NVIDIA card here: searches run on CPUs", fatal=False)
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("GPU driver", f"nvidia-smi: {error}")
    said = " ".join((done.stderr or done.stdout).split())[:200]
    return Finding("GPU driver", f"nvidia-smi: {said}" if done.returncode else "")
