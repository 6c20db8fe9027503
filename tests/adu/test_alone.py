"""The library by itself: where Ray, MLflow, Optuna and psycopg are not, and as its README says."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.adu.documents import ROOT, code_blocks
from tests.tiny import tiny_images

# What is not there, and what no import of `adu` alone may load.
SCRIPT = """
import importlib, pkgutil, sys

for missing in ("ray", "mlflow", "optuna", "psycopg", "pipeline"):
    sys.modules[missing] = None  # an import of it fails, as where it is not installed
import adu

assert adu.__version__
assert not {"torch", "open_clip", "pyarrow"} & set(sys.modules), "import adu takes seconds"
for module in pkgutil.walk_packages(adu.__path__, "adu."):
    importlib.import_module(module.name)
"""


def run(python: str, code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def examples() -> str:
    """The two with which the README begins, both of at most ten lines."""
    first, own = code_blocks("adu/README.md", "python")[:2]
    for example in (first, own):
        assert example.startswith("import adu\n")
        assert len(example.splitlines()) <= 10
    return f"{first}\n{own}"


def check_examples(python: str, folder: Path) -> None:
    tiny_images(folder / "photos", per_cell=24)
    told = run(python, f"{SCRIPT}\n{examples()}", folder)
    assert re.search(r"'mem': 0\.\d+, 'for': 0\.\d+, 'h': 0\.\d+", told)
    assert "('cup', 'fish', 'star')" in told
    assert {"without-sketch.safetensors", "model.safetensors"} <= {p.name for p in folder.iterdir()}


def test_every_module_and_the_readmes_examples_work_without_the_pipelines_packages(tmp_path):
    check_examples(sys.executable, tmp_path)


def needed() -> dict[str, str]:
    """The packages of pyproject's group `adu`, and the pin that the lock has of each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lock = (ROOT / "requirements-adu.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    return {name: pins[name.replace("_", "-")] for name in project["dependency-groups"]["adu"]}


def test_its_lock_is_a_part_of_the_whole_one():
    whole = (ROOT / "requirements.txt").read_text()
    part = (ROOT / "requirements-adu.txt").read_text()
    pins = set(re.findall(r"^[a-z0-9.-]+==\S+", whole, re.MULTILINE))
    assert set(re.findall(r"^[a-z0-9.-]+==\S+", part, re.MULTILINE)) < pins
    assert not re.search(r"^(ray|mlflow|optuna|psycopg|pandas)", part, re.MULTILINE)


def test_its_lock_has_what_it_imports():
    imported = set()
    for file in (ROOT / "adu").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"adu"}
    called = {"open_clip_torch": "open_clip", "scikit-learn": "sklearn", "pillow": "PIL"}
    have = {called.get(name, name) for name in needed()}
    # The first come with open_clip and s3fs; the last are an extra, asked for by name.
    assert others - have <= {"timm", "botocore", "aiohttp", "onnx", "onnxscript"}
    assert have - others <= {"torchvision", "s3fs"}


@pytest.mark.faults
def test_the_readmes_commands_install_all_that_it_needs(tmp_path):
    (commands,) = (c for c in code_blocks("adu/README.md", "") if "requirements-adu.txt" in c)
    python = tmp_path / "venv" / "bin" / "python"
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", "3.11", tmp_path / "venv"], check=True)
    for command in commands.strip().splitlines():
        arguments = command.removeprefix("pip install ").split()
        install = [uv, "pip", "install", "--quiet", "--python", python, *arguments]
        subprocess.run(install, cwd=ROOT, check=True)
    (tmp_path / "work").mkdir()
    check_examples(str(python), tmp_path / "work")
    shutil.rmtree(tmp_path / "venv")
