"""Code that stands in READMEs, for tests that run it as it is written."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def code_blocks(file: str, language: str) -> list[str]:
    """The blocks of one language in a document of the project, in order."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
