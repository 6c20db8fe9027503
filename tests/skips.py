"""Which tests continuous integration may skip, and why: any other skip is a failure there.

A test that skips protects nothing, and nobody reads the letter `s`.
"""

from __future__ import annotations

import os
import re

# Part of a reason, and why it is none of the project's business to bring what is missing.
ALLOWED = {
    r"\.\./shared|/shared/": "real images, a model trained on such, KubeRay's CRDs: not in Git",
    r"(is|are) not installed|is missing": "a program that packages of Python do not bring",
    r"cannot be installed|takes root": "the same, where packages are out of reach",
    r"cannot be mounted": "a small disk takes a privilege",
    r"GPU|CUDA": "no card",
    r"not a git checkout": "a source archive",
}


def is_failure(reason: str) -> bool:
    """Whether a test that was skipped counts as failed: in CI, if nobody allowed its reason."""
    in_ci = os.environ.get("CI", "").lower() in ("true", "1")
    return in_ci and not any(re.search(pattern, reason) for pattern in ALLOWED)
