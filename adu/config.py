"""What every typed configuration in the project shares: strictness and readable errors.

Each component owns its own model (``DataConfig`` in ``adu/data/decoded.py``, ``TrainConfig`` in
``adu/training/config.py`` and so on); this module only says how such models behave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import pydantic

from adu.errors import UserError

# Characters of a wrong value that a message shows.
MAX_SHOWN = 80

ModelT = TypeVar("ModelT", bound="StrictModel")


class StrictModel(pydantic.BaseModel):
    """A configuration whose unknown fields are errors and whose values do not change."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


def parse_config(model: type[ModelT], values: Mapping[str, Any], source: str) -> ModelT:
    """Validates plain values into a configuration.

    Args:
        model: The configuration class.
        values: What was read from YAML or the command line.
        source: Where the values come from, named in the error (a file, "command line").

    Raises:
        UserError: Naming the first wrong field, its value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {describe_validation_error(error, model)}") from error


def describe_validation_error(
    error: pydantic.ValidationError, model: type[pydantic.BaseModel]
) -> str:
    """One line for the first problem in a pydantic error, with the number of further ones."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path = [part for part in first["loc"] if not _is_union_tag(part)]
    field = ".".join(str(part) for part in path) or model.__name__
    if first["type"] == "extra_forbidden":
        parent = _model_at(model, first["loc"][:-1])
        line = f"unknown field '{field}' (known: {', '.join(known_fields(parent))})"
    elif first["type"] == "missing":
        line = f"field '{field}' is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        line = f"{field} = {_shown(first['input'])}: {message}"
    more = len(problems) - 1
    return f"{line} (and {more} more)" if more else line


def _shown(value: Any) -> str:
    """A value in a message, which is to stay one line that can be read."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def known_fields(model: type[pydantic.BaseModel]) -> list[str]:
    """The names under which a configuration's fields are written in YAML."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_union_tag(part: int | str) -> bool:
    # pydantic puts the tag of a union's member into the location; ours read "name=baseline".
    return isinstance(part, str) and part.startswith("name=")


def _model_at(
    model: type[pydantic.BaseModel], location: Sequence[int | str]
) -> type[pydantic.BaseModel]:
    """The configuration that an error's location points into."""
    annotation: Any = model
    for part in location:
        if _is_union_tag(part):
            annotation = _union_member(annotation, str(part).removeprefix("name="))
        elif _is_model(annotation) and part in annotation.model_fields:
            annotation = annotation.model_fields[part].annotation
        if _is_model(annotation):
            model = annotation
    return model


def _union_member(union: Any, name: str) -> Any:
    members = [get_args(member)[0] if get_origin(member) else member for member in get_args(union)]
    return next(m for m in members if m.model_fields["name"].default == name)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)
