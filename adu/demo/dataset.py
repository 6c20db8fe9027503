"""Write the synthetic pictures as files, laid out as `<folder>/<domain>/<class>/<index>.png`."""

from pathlib import Path

from adu.demo.render import CLASSES, DOMAINS, render

# Pre-training renders with seeds from here on, so that no picture written below was trained on.
PRETRAIN_SEED_START = 1_000_000


def write_images(folder: Path, images_per_cell: int, seed: int) -> None:
    """Draw `images_per_cell` pictures of every class in every domain.

    Args:
        folder: Where the domains' folders go; made if it does not exist.
        images_per_cell: How many pictures for each pair of domain and class, at least 1.
        seed: Which data set, from 0 to 999,999. The same seed writes the same pictures.

    Example:
        >>> write_images(folder, images_per_cell=1, seed=0)
        >>> len(list(folder.glob("*/*/*.png")))
        32
    """
    if images_per_cell < 1:
        raise ValueError(f"images_per_cell must be at least 1, got {images_per_cell}")
    if not 0 <= seed < PRETRAIN_SEED_START:
        raise ValueError(f"seed must be from 0 to {PRETRAIN_SEED_START - 1}, got {seed}")
    for domain in DOMAINS:
        for class_name in CLASSES:
            cell = folder / domain / class_name
            cell.mkdir(parents=True, exist_ok=True)
            for index in range(images_per_cell):
                picture = render(domain, class_name, index, seed)
                picture.save(cell / f"{index:04d}.png", compress_level=1)
