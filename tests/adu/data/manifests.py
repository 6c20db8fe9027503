"""Rows of a manifest of pets, and manifests of them."""

from adu.data.writing import write_manifest


def rows(per_cell=6, prefix="/data/"):
    return [
        {
            "image_id": f"{domain}/{class_}/{i}.png",
            "uri": f"{prefix}{domain}/{class_}/{i}.png",
            "domain": domain,
            "class": class_,
            "split": "test" if i < 2 else "train",
            "width": 8,
            "height": 8,
            "bytes": 10,
            "sha256": f"{domain}{class_}{i}",
        }
        for domain in ("sketch", "photo")
        for class_ in ("dog", "cat")
        for i in range(per_cell)
    ]


def write(url, its_rows):
    return write_manifest(str(url), its_rows, name="pets", source="/data")


def ids(manifest, row_numbers):
    return {manifest.table["image_id"][int(row)].as_py() for row in row_numbers}
