"""The best model of a study as MLflow serves it; MLflow runs this file, with a copy of `adu`."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel

from adu.serving.classifier import Classifier


class UnlearnedClip(PythonModel):
    """A column ``image`` of image files in, a column of scores for each class out."""

    def load_context(self, context: Any) -> None:
        """Loads the checkpoint, and the backbone where it came along."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        artifacts = context.artifacts
        self._classifier = Classifier(artifacts["checkpoint"], artifacts.get("backbone"), device)

    # MLflow would take type hints for the signature, which the model has already.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Class scores of every image."""
        scores_BC = self._classifier.scores(list(model_input["image"]))
        return pd.DataFrame(scores_BC, columns=list(self._classifier.classes))


mlflow.models.set_model(UnlearnedClip())
