"""The project's layout: imports go one way, and no folder appears that nobody agreed on."""

import ast
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The pipeline's packages: each may import those after it, and ingestion none.
LAYERS = ("jobs", "results", "tracking", "studies", "executors")
# The rooms of adu, from the top: each may import those after it. `demo` is for whoever names it.
ROOMS = (
    "api",
    "serving",
    "evidence",
    "training",
    "evaluation",
    "context",
    "methods",
    "models",
    "data",
    "storage",
)
COMMON = ("config", "demo", "distributed", "errors")
SHARED = ("command", "names", "patience", "text_files")
FOLDERS = {"adu", "pipeline", "search_spaces", "infra", "tests", ".ci"}


def imported_modules(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_packages(file: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(file)}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("adu", {"ray", "mlflow", "optuna", "pipeline", "search_spaces", "tests"}),
        ("pipeline", {"search_spaces", "tests", "infra"}),
        ("infra", {"pipeline", "search_spaces", "tests"}),
    ],
)
def test_imports_go_one_way(folder, forbidden):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): imported_packages(f) & forbidden for f in files}
    assert not {file: names for file, names in wrong.items() if names}


@pytest.mark.parametrize("package", [*LAYERS, "ingestion"])
def test_packages_of_the_pipeline_import_those_below_them(package):
    below = LAYERS[LAYERS.index(package) :] if package in LAYERS else (package,)
    allowed = {f"pipeline.{name}" for name in (*below, *SHARED)}
    files = sorted((ROOT / "pipeline" / package).glob("*.py"))
    assert files
    for file in files:
        modules = {m for m in imported_modules(file) if m.startswith("pipeline")}
        assert {".".join(m.split(".")[:2]) for m in modules} <= allowed, file.name


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_adu_import_those_below_them(room):
    allowed = {f"adu.{name}" for name in (*ROOMS[ROOMS.index(room) :], *COMMON)}
    files = sorted({*(ROOT / "adu").glob(f"{room}.py"), *(ROOT / "adu" / room).rglob("*.py")})
    assert files
    for file in files:
        modules = {m for m in imported_modules(file) if m.startswith("adu.")}
        assert {".".join(m.split(".")[:2]) for m in modules} <= allowed, file.name


def test_adu_has_no_other_rooms():
    found = {
        p.stem
        for p in (ROOT / "adu").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert found == {*ROOMS, *COMMON, "__init__"}


# What is used of other packages though it is not theirs to give, and why.
PRIVATE = {
    ("pipeline/executors/trainer.py", "super()._create_default_callbacks"): (
        "Ray Train would keep a process of 110 MB on the head for each group of workers"
    ),
    (
        "adu/models/tower.py",
        "self.visual._pool",
    ): "open_clip pools by a method that it does not publish",
    ("adu/models/tower.py", "self.trunk._pos_embed"): "timm adds positions by one, too",
    ("pipeline/command.py", "parser._actions"): "argparse lists its flags nowhere else",
}


def private_uses(file: Path) -> set[str]:
    """Underscore attributes of anything but a class' own, and imports of private modules."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr):
            continue
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os")):
            found.add(ast.unparse(node))
    modules = imported_modules(file)
    return found | {m for m in modules if re.search(r"\._[a-z]", m) and "__" not in m}


def test_only_documented_api_is_used_but_for_what_has_its_reason():
    found = {
        (str(file.relative_to(ROOT)), use)
        for folder in ("adu", "pipeline", "infra")
        for file in (ROOT / folder).rglob("*.py")
        for use in private_uses(file)
    }
    assert found == PRIVATE.keys()


# The same in tests: private modules that they import.
PRIVATE_IN_TESTS = {
    ("tests/adu/storage/test_places.py", "ray.train._internal.storage"): (
        "what Ray Train makes of a storage path, without a run"
    ),
    ("tests/faults/test_autoscaling.py", "ray.autoscaler._private.fake_multi_node.node_provider"): (
        "nodes for an autoscaler that stand for no machines"
    ),
    ("tests/infra/test_secret_files.py", "ray._private.runtime_env.packaging"): (
        "what `ray job submit` sends of a working directory, without a cluster"
    ),
}


def test_tests_import_no_private_module_but_for_what_has_its_reason():
    packages = ("ray", "mlflow", "optuna", "open_clip")
    found = {
        (str(file.relative_to(ROOT)), node.module)
        for file in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
        if node.module.split(".")[0] in packages and re.search(r"\._[a-z]", node.module)
    }
    assert found == PRIVATE_IN_TESTS.keys()


def test_no_module_needs_itself_to_be_imported():
    """Imports inside functions count: they are for speed, not for loops."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for folder in ("adu", "pipeline", "infra")
        for file in (ROOT / folder).rglob("*.py")
    }
    graph = {name: imported_modules(file) & files.keys() for name, file in files.items()}
    assert sum(map(len, graph.values())) > len(files)
    TopologicalSorter(graph).prepare()


def test_top_level_folders_are_the_agreed_ones():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines() if "/" in line}
    assert tops <= FOLDERS


def test_the_lock_names_no_package_index():
    for file in ROOT.glob("requirements*.txt"):
        assert "://" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-dev.txt", "requirements-stack.txt"]
)
def test_every_locked_package_has_its_hashes(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    pins = re.split(r"\n(?=[a-z])", text)
    assert len(pins) >= 1 and all("--hash=sha256:" in pin for pin in pins)


def test_wherever_a_lock_is_installed_its_hashes_are_asked_for():
    for file in ("Makefile", "infra/image/Dockerfile"):
        text = (ROOT / file).read_text(encoding="utf-8")
        installs = re.findall(r"[^\n]*-r requirements(?!-torch)[\w-]*\.txt", text)
        installs = [line for line in installs if "install" in line.lower()]
        assert installs and all("--require-hashes" in line for line in installs), file
