"""The checks of an ingest, and what they have found: a count and a few examples of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# What a check's name means and what is done about it, in the order of the report.
CHECKS: dict[str, tuple[str, str]] = {
    "hidden": ("hidden or a system's", "left out"),
    "other_file": ("no image by its name", "left out"),
    "unknown_format": ("image format not read", "left out"),
    "broken_name": ("name not Unicode", "left out"),
    "not_a_file": ("pipe or device", "left out"),
    "link_loop": ("link in a circle", "left out"),
    "empty_folder": ("empty folder", "left out"),
    "unused": ("copy, or without a label", "left out"),
    "class_lacking": ("class that a domain lacks", "left out"),
    "unreadable": ("unreadable", "left out"),
    "truncated": ("truncated", "left out"),
    "zero_byte": ("zero bytes", "left out"),
    "not_an_image": ("not an image", "left out"),
    "decompression_bomb": ("decompression bomb", "left out"),
    "cmyk": ("CMYK", "converted"),
    "16_bit": ("16-bit", "scaled to 8"),
    "palette": ("palette", "converted"),
    "alpha": ("alpha", "put on white"),
    "exif_rotation": ("EXIF rotation", "applied"),
    "frames": ("several frames", "first used"),
    "warned": ("decoder warns", "kept"),
    "same_in_one_cell": ("same image twice in a class", "kept"),
    "same_in_two_classes": ("same image in two classes", "kept"),
    "same_in_two_splits": ("same image in two splits", "kept"),
    "same_in_two_domains": ("same image in two domains", "kept"),
    "similar_in_two_classes": ("similar image in two classes", "kept"),
    "similar_in_two_splits": ("similar image in two splits", "kept"),
    "similar_in_two_domains": ("similar image in two domains", "kept"),
    "few_shots": ("class below the asked shots", "kept"),
}
LEFT_OUT = tuple(name for name, (_, action) in CHECKS.items() if action == "left out")
# An image with one of these is not used quite as it lies there.
FLAGS = ("cmyk", "16_bit", "palette", "alpha", "exif_rotation", "frames")

MAX_EXAMPLES = 20


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: A key of `CHECKS`.
        count: How many images, pairs or classes.
        examples: Some of them.
    """

    name: str
    count: int
    examples: tuple[str, ...]

    @property
    def card(self) -> dict[str, object]:
        """For the manifest's card."""
        return {"count": self.count, "done": CHECKS[self.name][1], "examples": list(self.examples)}


class Findings:
    """What the checks have found so far, in memory that does not grow with it."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, check: str, names: Iterable[str]) -> None:
        """Notes some cases of a check."""
        first = self._first.setdefault(check, [])
        for name in names:
            self._counts[check] += 1
            first.append(name)
            if len(first) >= 2 * MAX_EXAMPLES:
                first[:] = sorted(first)[:MAX_EXAMPLES]

    def results(self) -> list[CheckResult]:
        """Every check, with what it found, in the order of the report."""
        return [
            CheckResult(
                name, self._counts[name], tuple(sorted(self._first.get(name, ()))[:MAX_EXAMPLES])
            )
            for name in CHECKS
        ]
