"""Logs the best model of a study as an MLflow model, and registers it."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from pipeline.names import parse_forget_name

ALIAS = "best"

# What the served model needs besides the copy of `adu` that goes with it.
REQUIREMENTS = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "safetensors",
    "pydantic",
    "pyarrow",
    "fsspec",
    "pillow",
    "numpy",
    "pandas",
)


def log_model(
    uri: str,
    run_id: str,
    name: str,
    checkpoint: bytes,
    classes: Sequence[str],
    backbone: str,
    tags: Mapping[str, str],
) -> str:
    """Logs a model with a run, and registers it under a name with the alias ``best``.

    It is whole: it holds a copy of `adu`, and of the backbone unless that comes with `adu` or is
    one of open_clip's tags, which are fetched where the model is served. A run has one model:
    logged again, it is found.

    Args:
        uri: MLflow's server or database.
        run_id: The run that it belongs to.
        name: Its name in the registry.
        checkpoint: What was trained.
        classes: Names of the classes.
        backbone: The backbone's name.
        tags: Put on its version: the forget set as ``forget``, the search, and so on.

    Returns:
        Its version in the registry.
    """
    import adu

    client = MlflowClient(uri)
    known = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
    if known:
        # The search was killed between here and the end of its study.
        return _point(client, name, str(known[0].version))
    image = Schema([ColSpec(DataType.binary, "image")])
    scores = Schema([ColSpec(DataType.double, name) for name in classes])
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "checkpoint.safetensors"
        file.write_bytes(checkpoint)
        held, requirements = _parts(backbone, Path(folder))
        artifacts = {"checkpoint": str(file), **held}
        mlflow.set_tracking_uri(uri)
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("served_model.py")),
                artifacts=artifacts,
                code_paths=[str(Path(adu.__file__).parent)],
                signature=ModelSignature(inputs=image, outputs=scores),
                pip_requirements=[f"{p}=={version(p)}" for p in requirements],
                registered_model_name=name,
                await_registration_for=60,
            )
    number = str(logged.registered_model_version)
    _describe(client, name, number, backbone, tags)
    return _point(client, name, number)


def _parts(backbone: str, scratch: Path) -> tuple[dict[str, str], Sequence[str]]:
    """What goes along so that a backbone is there where the model is served.

    Returns:
        The folder that it is in, unless it is to be had there, and the packages needed.
    """
    if backbone == "demo":
        return {}, REQUIREMENTS
    # Takes seconds, which the demo is not worth.
    from adu.models.folder import save_folder
    from adu.models.sources import find_source, needs_transformers

    requirements: Sequence[str] = REQUIREMENTS
    if needs_transformers(backbone):
        requirements = (*REQUIREMENTS, "transformers")
    source = find_source(backbone)
    if source.tag is not None:
        return {}, requirements
    if source.folder is not None and "://" not in source.folder:
        return {"backbone": source.folder}, requirements
    folder = scratch / "backbone"
    folder.mkdir()
    save_folder(backbone, folder)
    return {"backbone": str(folder)}, requirements


def _describe(
    client: MlflowClient, name: str, number: str, backbone: str, tags: Mapping[str, str]
) -> None:
    forget = " and ".join(parse_forget_name(tags["forget"])) if tags.get("forget") else ""
    text = (
        f"{backbone} that has unlearned the domain {forget}: bytes of an image in, a score for "
        f"each class out. `mlflow.pyfunc.load_model('models:/{name}@{ALIAS}')`"
    )
    client.update_registered_model(name, text)
    client.update_model_version(name, number, text)
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)


def _point(client: MlflowClient, name: str, number: str) -> str:
    client.set_registered_model_alias(name, ALIAS, number)
    return number


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow tells a model's every file, and asks for an example of its input."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
