"""The configurations that a study is judged by, as files that ``train.py --config`` takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from adu import storage
from adu.errors import UserError
from adu.training.config import RunConfig
from pipeline.text_files import read_text

FOLDER = "configs"


def write_chosen(
    study: str, runs: Iterable[tuple[str, RunConfig]], context: Mapping[str, Any]
) -> None:
    """Writes a file a stage, with all its seeds.

    Args:
        study: The study's folder or URL.
        runs: Stage and configuration of each final run.
        context: Model and images, as plain values.
    """
    by_stage: dict[str, list[RunConfig]] = {}
    for stage, run in runs:
        by_stage.setdefault(stage, []).append(run)
    for stage, each in by_stage.items():
        values = {
            "context": context,
            **each[0].model_dump(mode="json", by_alias=True),
            "seeds": [run.train.seed for run in each],
        }
        # The seeds are said once.
        del values["train"]["seed"]
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        storage.write_bytes(storage.join(study, FOLDER, f"{stage}.yaml"), text.encode())


def read_chosen(study: str) -> list[tuple[str, RunConfig]]:
    """Stage and configuration of each final run of a study; none if it has not got that far.

    Raises:
        UserError: If a file is not what `write_chosen` has written.
    """
    folder = storage.join(study, FOLDER)
    found = []
    for name in sorted(storage.names_in(folder)):
        file = storage.join(folder, name)
        try:
            values = yaml.safe_load(read_text(file, file))
            seeds, train = values.pop("seeds"), values.pop("train")
            del values["context"]
            for seed in seeds:
                run = RunConfig.model_validate({**values, "train": {**train, "seed": seed}})
                found.append((name.removesuffix(".yaml"), run))
        except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{file}: is damaged: {' '.join(str(error).split())[:200]}") from error
    return found
