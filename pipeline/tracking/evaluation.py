"""An evaluation in MLflow: a run of its own, written once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric

from adu.data.manifest import Manifest
from adu.errors import UserError
from pipeline.tracking.facts import origin
from pipeline.tracking.mirror import data_input
from pipeline.tracking.server import Server, find_experiment, quiet_mlflow, told
from pipeline.tracking.wanted import text_of


def log_evaluation(
    server: Server,
    name: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    figures: Mapping[str, Any],
    manifest: Manifest,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Logs what an evaluation came to.

    Args:
        server: Where.
        name: The run's name.
        tags: Put on the run.
        metrics: What the UI compares.
        figures: All of it, as JSON values.
        manifest: The images.
        texts: Files to keep beside the figures, by name.

    Raises:
        UserError: If MLflow does not take it.
    """
    client = server.client()
    plain_tags = {key: text_of(value) for key, value in {**origin(), **tags}.items()}
    try:
        with quiet_mlflow():
            experiment = find_experiment(client, server.uri, manifest.name)
            run = client.create_run(experiment, run_name=name, tags=plain_tags)
            run_id, now_ms = run.info.run_id, run.info.start_time
            points = [Metric(key, value, now_ms, 0) for key, value in metrics.items()]
            client.log_batch(run_id, metrics=points)
            client.log_inputs(
                run_id, [data_input(manifest.name, manifest.digest, manifest.url, "test")]
            )
            client.log_dict(run_id, dict(figures), "figures.json")
            for file, text in (texts or {}).items():
                client.log_text(run_id, text, file)
            client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        raise UserError(f"tracking.uri {server.shown}: {told(error)}") from error
