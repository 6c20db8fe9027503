"""Registers the best model of each study, and says which of them is the one to take.

A model is written from its code (MLflow's models-from-code): it holds no pickle, and nothing is
unpickled when it is loaded. MLflow's own settings are left alone.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from adu import storage
from pipeline.names import HASH_LENGTH, mlflow_name
from pipeline.tracking.facts import Facts
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.server import quiet_mlflow
from pipeline.tracking.truth import WantedModel

ALIAS = "best"
FILE = "model.json"
VERSION_TAG = "adu.version"

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


def register(mirror: Mirror) -> None:
    """Registers the models that an output should have, once its runs are there.

    What came of each study is written into its folder (`FILE`), for the report.

    Raises:
        Exception: If MLflow does not do it.
    """
    facts, output = mirror.truth.facts, mirror.truth.output
    for model in mirror.truth.models():
        name = model_name(facts.name, model.forget)
        with quiet_mlflow(logging.ERROR):
            number = _find(mirror.client, name, model) or _log(mirror, name, model)
            reason = _point(mirror.client, name, number, facts, model)
        told = {
            "name": name,
            "version": number,
            "is_best": not reason,
            "reason": reason,
            "uri": f"models:/{name}/{number}",
            "registry": mirror.server.shown,
        }
        file = storage.join(output, model.study, FILE)
        storage.write_bytes(file, json.dumps(told, indent=2).encode())


def model_name(search: str, forget: Sequence[str]) -> str:
    """The name in the registry of the best model of a study; no two have one name.

    Example:
        >>> model_name("pacs", ["photo", "sketch"])
        'pacs-without-photo+sketch'
    """
    parts = [search, *forget]
    plain = [mlflow_name(part) for part in parts]
    readable = f"{plain[0]}-without-{'+'.join(plain[1:])}"
    if plain == parts and "-without-" not in search and len(readable) <= 200:
        return readable
    digest = mlflow_name(f"[{json.dumps(parts)}]")[-HASH_LENGTH:]
    return f"{readable[:150]}-{digest}"


def _find(client: MlflowClient, name: str, model: WantedModel) -> str | None:
    """The version that holds the model already."""
    found = client.search_model_versions(f"name = '{name}'")
    for each in found:
        if each.tags.get(VERSION_TAG) == model.version:
            return str(each.version)
    return None


def _log(mirror: Mirror, name: str, model: WantedModel) -> str:
    """Writes a model with a study's run, and a version of it into the registry."""
    client, facts, run_id = mirror.client, mirror.truth.facts, mirror.run_id(model.run)
    _remove_halves(client, mirror.experiment, run_id)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model"
        _save(saved, Path(folder), model.checkpoint(), facts)
        logged = client.create_logged_model(mirror.experiment, "model", run_id)
        client.log_model_artifacts(logged.model_id, str(saved))
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    text = _description(name, facts, model)
    tags = {
        "search": facts.name,
        "search_id": facts.id,
        "forget": "+".join(model.forget),
        "manifest_digest": facts.digest,
        "seed": str(model.seed),
        **{f"test_{key}": repr(value) for key, value in model.scores.as_dict().items()},
        VERSION_TAG: model.version,
    }
    _ensure_model(client, name, text)
    created = client.create_model_version(
        name,
        logged.artifact_location,
        run_id,
        tags=tags,
        description=text,
        model_id=logged.model_id,
        await_creation_for=60,
    )
    return str(created.version)


def _remove_halves(client: MlflowClient, experiment: str, run_id: str) -> None:
    """Removes what an outage has left of this model: nobody has a version of it."""
    for logged in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if logged.status != LoggedModelStatus.READY:
            client.delete_logged_model(logged.model_id)


def _ensure_model(client: MlflowClient, name: str, text: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description=text)


def _save(place: Path, scratch: Path, checkpoint: bytes, facts: Facts) -> None:
    """Writes a whole model: with a copy of `adu`, and of the backbone unless that comes along."""
    import adu

    file = scratch / "checkpoint.safetensors"
    file.write_bytes(checkpoint)
    held, requirements = _parts(facts.backbone, scratch)
    image = Schema([ColSpec(DataType.binary, "image")])
    scores = Schema([ColSpec(DataType.double, name) for name in facts.classes])
    with warnings.catch_warnings():
        # It asks for an example of the input, and tells a model's every file.
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            place,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"checkpoint": str(file), **held},
            code_paths=[str(Path(adu.__file__).parent)],
            signature=ModelSignature(inputs=image, outputs=scores),
            pip_requirements=[f"{p}=={version(p)}" for p in requirements],
        )


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


def _description(name: str, facts: Facts, model: WantedModel) -> str:
    return (
        f"{facts.backbone} that has unlearned the domain {' and '.join(model.forget)} of "
        f"{facts.data_set} (search {facts.name}): bytes of an image in, a score for each class "
        f"out. `mlflow.pyfunc.load_model('models:/{name}@{ALIAS}')`"
    )


def _point(client: MlflowClient, name: str, number: str, facts: Facts, model: WantedModel) -> str:
    """Moves the alias to a version if it is a better one; returns why not."""
    try:
        best = client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        best = None
    if best is not None and str(best.version) == number:
        return ""
    reason = _why_not(best, facts, model)
    if not reason:
        client.set_registered_model_alias(name, ALIAS, number)
    return reason


def _why_not(best: ModelVersion | None, facts: Facts, model: WantedModel) -> str:
    """Why a model is not the one to take: the rules that `ALIAS` moves by."""
    scores, goal = model.scores, facts.goal.beside(model.zero_shot, model.forget)
    if goal.lacks_zero_shot:
        return "the untouched model, of whose Mem it must have a share, was not tested"
    least = goal.least_mem
    if least is not None and scores.mem < least:
        return f"its Mem on test images, {_percent(scores.mem)}, is below {_percent(least)}"
    for domain, least in goal.least_by_domain.items():
        if (accuracy := scores.accuracy_by_domain[domain]) < least:
            return f"its accuracy on {domain}, {_percent(accuracy)}, is below {_percent(least)}"
    most = goal.max_forget_accuracy
    if most is not None and 1 - scores.for_ > most:
        return (
            f"its accuracy on what is forgotten, {_percent(1 - scores.for_)}, is above "
            f"{_percent(most)}"
        )
    if best is None:
        return ""
    if best.tags.get("manifest_digest") != facts.digest:
        return f"version {best.version} is of other images, so that they cannot be compared"
    before = float(best.tags.get("test_h", "nan"))
    if not scores.h > before:
        return (
            f"version {best.version} has an H of {_percent(before)} on the same test images, "
            f"this one {_percent(scores.h)}"
        )
    return ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
