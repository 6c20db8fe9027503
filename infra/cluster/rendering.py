"""Renders manifests: templates of this folder, filled in from the settings.

Plain rendering was chosen over kustomize and Helm. With kustomize a patch must know how the object
beneath it looks, and what several objects share (image, host, bucket) cannot be set in one place; a
chart has its templates in a language that nothing here could check. These settings have a schema, a
template is the object as it will be, and rendering takes Python alone.

Three layers, each applied and removed by itself: `platform`, `tracking`, and searches. No object is
in two of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from adu.errors import UserError
from infra.cluster.settings import ROOT, Search, Settings

TEMPLATES = Path(__file__).with_name("templates")
LAYERS = {
    "platform": (
        "namespace",
        "service_accounts",
        "network_policies",
        "redis",
        "queue",
        "monitoring",
    ),
    "tracking": ("postgres", "backup", "mlflow"),
}
# The same parser, ten times as fast where it is compiled.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Objects that belong to no namespace.
GLOBAL_KINDS = ("Namespace", "ClusterQueue", "ResourceFlavor")

# Where pods find what their ConfigMap holds.
FILES = "/etc/adu-search"
TRACKING_URI = "http://mlflow:5000"
# Nodes that are to come may take this long.
SCALE_UP_S = 1800

Manifest = dict[str, Any]


def render_layer(settings: Settings, layer: str) -> list[Manifest]:
    """The objects of the layer platform or tracking."""
    return [m for name in LAYERS[layer] for m in _render(settings, f"{layer}/{name}.yaml")]


def render_search(settings: Settings, name: str) -> list[Manifest]:
    """The objects of a search.

    Raises:
        UserError: If there is no such search, or its space cannot be read.
    """
    search = _named(settings.searches, name, "searches")
    values = {
        "name": name,
        "search": search,
        "entrypoint": " ".join(entrypoint(settings, search, f"{FILES}/space.yaml")),
    }
    files = ("search/settings.yaml", "search/ray_job.yaml")
    return [m for file in files for m in _render(settings, file, **values)]


def render_check(settings: Settings, name: str) -> list[Manifest]:
    """A Job that looks at a search as `--dry-run` does: a mistake costs no cluster.

    Raises:
        UserError: As `render_search`.
    """
    search = _named(settings.searches, name, "searches")
    words = entrypoint(settings, search, f"{FILES}/space.yaml")
    words = [word.replace("$RUN_NAME", name) for word in words]
    return _job(
        settings,
        f"{name}-check",
        f"Looks at search {name}, and starts nothing.",
        [*words, "--dry-run"],
        {"space.yaml": _file(search.space)},
        retries=0,
        deadline_s=900,
    )


def render_ingest(settings: Settings, name: str) -> list[Manifest]:
    """A Job that writes a manifest of images.

    Raises:
        UserError: If there is no such ingest.
    """
    ingest = _named(settings.ingests, name, "ingests")
    out = f"{settings.storage.bucket}/manifests/{name}"
    words = ["python", "pipeline/ingest.py", "--source", ingest.source, "--out", out]
    words += ["--name", name, *ingest.arguments]
    # Killed, it goes on where it was.
    what = f"Reads the images of {name} into the bucket."
    return _job(settings, f"ingest-{name}", what, words, {}, retries=6, deadline_s=172800)


def render_model(settings: Settings, name: str) -> list[Manifest]:
    """A Job that copies a model's weights into the bucket.

    Raises:
        UserError: If there is no such model.
    """
    model = _named(settings.models, name, "models")
    to = f"{settings.storage.bucket}/models/{name}"
    words = ["python", f"{FILES}/copy_model.py", model.backbone, to]
    files = {"copy_model.py": _file(Path("infra/cluster/scripts/copy_model.py"))}
    job_name = f"model-{name.lower().replace('_', '-').replace('.', '-')}"
    what = f"Copies the weights of {name} into the bucket."
    return _job(settings, job_name, what, words, files, retries=3, deadline_s=7200)


# What `render` takes besides the layers: each kind, and what has names of that kind.
NAMED = {
    "search": render_search,
    "check": render_check,
    "ingest": render_ingest,
    "model": render_model,
}


def entrypoint(settings: Settings, search: Search, space: str) -> list[str]:
    """The command of a search, word by word."""
    words = ["python", "pipeline/search.py", "--config", space]
    if search.manifest:
        words += ["--manifest", search.manifest]
    if search.backbone:
        words += ["--backbone", search.backbone]
    words += ["--output", f"{settings.storage.bucket}/results/$RUN_NAME", "--resume-or-start"]
    words += ["--tracking-uri", TRACKING_URI]
    words += ["--cpus-per-worker", str(search.worker_cpus)]
    if search.gpus:
        words += ["--gpus-per-worker", str(search.gpus)]
    words += ["--resources.executors", str(search.workers)]
    if search.scales:
        words += ["--resources.autoscale", "--resources.start-timeout-s", str(SCALE_UP_S)]
    words += ["--context.data.cache-gib", str(search.images_gib)]
    words += ["--context.data.disk-gib", str(search.test_images_gib)]
    return [*words, *search.arguments]


def as_yaml(manifests: list[Manifest]) -> str:
    """Manifests as `kubectl apply -f -` takes them."""
    return yaml.safe_dump_all(manifests, sort_keys=False, width=1000)


def _job(
    settings: Settings,
    name: str,
    what: str,
    command: list[str],
    files: Mapping[str, str],
    *,
    retries: int,
    deadline_s: int,
) -> list[Manifest]:
    values = {"job_name": name, "what": what, "command": command, "files": files}
    limits = {"retries": retries, "deadline_s": deadline_s}
    return _render(settings, "jobs/job.yaml", **values, **limits)


def _named(known: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in known:
        raise UserError(f"{kind}: no '{name}' in the settings (there are: {', '.join(known)})")
    return known[name]


def _file(path: Path) -> str:
    """A file of the project, or of the user's."""
    file = path if path.is_absolute() else ROOT / path
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    # JSON is YAML: whatever a setting holds stays one value.
    environment.filters["quoted"] = json.dumps
    return environment


def _render(settings: Settings, template: str, **values: Any) -> list[Manifest]:
    known = {name: getattr(settings, name) for name in type(settings).model_fields}
    known["file"] = lambda path: _file(Path(path))
    macros = _environment().get_template("macros.yaml").make_module(known)
    known |= {name: macro for name, macro in vars(macros).items() if not name.startswith("_")}
    text = _environment().get_template(template).render({**known, **values})
    manifests = [m for m in yaml.load_all(text, LOADER) if m is not None]
    for manifest in manifests:
        if manifest["kind"] not in GLOBAL_KINDS:
            manifest["metadata"]["namespace"] = settings.namespace
    return manifests
