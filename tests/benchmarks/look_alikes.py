"""Which look-alikes an ingest of many images finds, and how long comparing them takes.

    python -m tests.benchmarks.look_alikes [--images 1000000]

Perceptual hashes are random; one image in a thousand has a look-alike, three bits away.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pyarrow as pa

from pipeline.ingestion.same_images import Fingerprints

IMAGES_OF_BLOCK = 1_000_000


def block(first: int, n: int, rng: np.random.Generator) -> pa.Table:
    """What ingest knows of some images, the last of which look like the first."""
    hashes = rng.integers(0, 2**63, n, dtype=np.uint64)
    n_alike = n // 1000
    bits_3A = np.argsort(rng.random((64, n_alike)), axis=0)[:3].astype(np.uint64)
    flips = np.bitwise_or.reduce(np.uint64(1) << bits_3A, axis=0)
    hashes[n - n_alike :] = hashes[:n_alike] ^ flips
    sha = pa.array(f"{first + i:016x}" for i in range(n))
    return pa.table({"source_sha256": sha, "phash": pa.array(hashes)})


def main() -> None:
    """Prints how many were found and in what time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    n_images = parser.parse_args().images
    rng, planted = np.random.default_rng(0), 0
    with Fingerprints() as prints:
        for first in range(0, n_images, IMAGES_OF_BLOCK):
            n = min(IMAGES_OF_BLOCK, n_images - first)
            prints.add(block(first, n, rng))
            planted += 2 * (n // 1000)
        start_s = time.process_time()
        found = len(prints.suspects())
    cpu_s = time.process_time() - start_s
    print(f"{n_images:,} images: {found:,} of {planted:,} found, {cpu_s:.1f} CPU s")


if __name__ == "__main__":
    main()
