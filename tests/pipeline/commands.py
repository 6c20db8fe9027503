"""Runs the project's commands as a user does: in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACS = ROOT.parent / "shared" / "data" / "pacs"
PACS_CLIP = ROOT.parent / "shared" / "models" / "pacs-clip"


def start(script: str, arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Starts ``pipeline/SCRIPT`` with its output captured, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipeline" / script), *arguments],
        cwd=ROOT,
        # This checkout's packages, whichever is installed.
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(script: str, arguments: Sequence[str], **environment: str) -> tuple[int, str, str]:
    """Runs ``pipeline/SCRIPT``; gives its exit code, standard output and standard error."""
    process = start(script, arguments, **environment)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err
