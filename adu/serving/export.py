"""Trained models for whoever does not have this library: ONNX, PyTorch's export, open_clip folders.

Tensor names carry their shape: B images, C classes, E feature width.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from adu.errors import UserError
from adu.models.folder import save_folder
from adu.serving.model import UnlearnedModel

INPUT, OUTPUTS = "images", ("logits", "features")
CLASSIFIER_FILE = "classifier.safetensors"
# An ONNX file is a protobuf, which holds at most 2 GiB; larger weights go into a file beside it.
MOST_BYTES = 2**31 - 2**24


class _Traced(nn.Module):
    """A model with plain tensors for its outputs."""

    def __init__(self, model: UnlearnedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(images)
        return output.logits_BC, output.features_BE


def exported_program(model: UnlearnedModel) -> ExportedProgram:
    """The model as a graph of PyTorch's own operators, for any number of images.

    Returns:
        A program: prepared images_BCHW in, logits_BC and unit-length features_BE out.
    """
    size = model.transform.image_size
    example_BCHW = torch.zeros(2, 3, size, size, device=model.device)
    with torch.no_grad():
        return torch.export.export(
            _Traced(model).eval(),
            (example_BCHW,),
            dynamic_shapes={INPUT: {0: Dim("batch")}},
            strict=True,
        )


def export_onnx(model: UnlearnedModel, file: str | os.PathLike[str]) -> None:
    """Writes the model as ONNX, for any number of images.

    Its input ``images`` are prepared images_BCHW (`adu.data.preprocess`), its outputs ``logits``, C
    a class, and unit-length ``features``. Weights of more than 2 GiB lie in a file beside it.

    Args:
        model: The model.
        file: Where to write it.

    Raises:
        UserError: If the packages for it are not installed.
    """
    try:
        import onnx  # noqa: F401 - both are used by torch.onnx alone
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export to ONNX needs the package {error.name}, which is not installed "
            "(pip install 'adu-search[export]')"
        ) from error
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    program = torch.onnx.export(
        exported_program(model),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(file, external_data=n_bytes > MOST_BYTES)


def export_open_clip(model: UnlearnedModel, folder: str | os.PathLike[str]) -> None:
    """Writes a folder that open_clip loads, and the classes' matrix beside it.

    ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` gives a model whose unit-length
    image features, times ``weight_CE`` and plus ``bias_C`` of `CLASSIFIER_FILE`, are this model's
    logits.

    Args:
        model: The model.
        folder: Where to write it; made if it does not exist.

    Raises:
        UserError: If the method does something to image features that open_clip does not, such as
            prompts.
    """
    changed = model.method.open_clip_weights()
    if changed is None:
        raise UserError(
            f"method {model.card.run.method.name}: has image features that no open_clip model has "
            "(allowed: export_onnx)"
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_folder(model.method.backbone.name, target, changed)
    # Scores are linear in the features where the image tower is open_clip's own.
    width = model.text_CE.shape[1]
    with torch.no_grad():
        bias_C = model.method.class_logits(model.text_CE.new_zeros(1, width), model.text_CE)[0]
        unit_EE = torch.eye(width, device=model.device)
        weight_CE = (model.method.class_logits(unit_EE, model.text_CE) - bias_C).T
    tensors = {"weight_CE": weight_CE.contiguous().cpu(), "bias_C": bias_C.contiguous().cpu()}
    save_file(tensors, target / CLASSIFIER_FILE, {"classes": "\n".join(model.classes)})
