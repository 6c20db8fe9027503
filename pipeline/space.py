"""Search spaces: each range beside its default, by dotted path into a run's configuration.

In YAML::

    space:
      method.gamma: {low: 0.03, high: 30, log: true, default: 30}
      method.n_ctx: {choices: [2, 4, 8], default: 8}
      method.instapg_layer: {low: 1, high: 3, default: 2}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pydantic
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field

from adu.config import StrictModel, describe_validation_error
from adu.errors import UserError
from adu.trainer import RunConfig
from pipeline.trial import with_parameters

Value = int | float | str | bool


class Parameter(StrictModel):
    """One searched option: a range or choices, and its default."""

    low: int | float | None = Field(None, description="smallest value of a range")
    high: int | float | None = Field(None, description="largest value of a range")
    log: bool = Field(False, description="whether a range is searched on a logarithmic scale")
    choices: tuple[Value, ...] | None = Field(None, description="the values, instead of a range")
    default: Value = Field(description="the value of the first trial")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Parameter:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("must have either choices or a range (low, high), not both")
            if self.default not in self.choices:
                raise ValueError(f"default {self.default} must be one of {list(self.choices)}")
        elif self.low is None or self.high is None:
            raise ValueError("must have choices, or low and high")
        elif self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 on a logarithmic scale")
        elif isinstance(self.default, str) or not self.low <= self.default <= self.high:
            raise ValueError(f"default {self.default} must be from {self.low} to {self.high}")
        return self

    @property
    def examples(self) -> tuple[Value, ...]:
        """Values at the ends of the range, or all choices."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        return (self.low, self.high)


Space = Mapping[str, Parameter]


def defaults(space: Space) -> dict[str, Value]:
    """Every parameter's default."""
    return {path: parameter.default for path, parameter in space.items()}


def check_space(space: Space, base: RunConfig) -> None:
    """Checks that every value that a search may try is one that a run accepts.

    Raises:
        UserError: Naming the parameter, the value and what is allowed.
    """
    for path, parameter in space.items():
        for value in (*parameter.examples, parameter.default):
            try:
                configure(base, {path: value})
            except UserError as error:
                raise UserError(f"space.{path}: {error}") from error


def configure(base: RunConfig, parameters: Mapping[str, Any]) -> RunConfig:
    """A run's configuration with parameters set.

    Raises:
        UserError: If the configuration does not accept one of them.
    """
    values = with_parameters(base.model_dump(mode="json", by_alias=True), parameters)
    try:
        return RunConfig.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(describe_validation_error(error, RunConfig)) from error


def distributions(space: Space, base: RunConfig) -> dict[str, BaseDistribution]:
    """The space as Optuna knows it; integer fields are searched as integers."""
    return {path: _distribution(path, parameter, base) for path, parameter in space.items()}


def _distribution(path: str, parameter: Parameter, base: RunConfig) -> BaseDistribution:
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    if _is_integer(path, base):
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)


def _is_integer(path: str, base: RunConfig) -> bool:
    *parents, name = path.split(".")
    model: Any = base
    for parent in parents:
        model = getattr(model, parent)
    for field_name, field in type(model).model_fields.items():
        if name in (field_name, field.alias):
            return field.annotation is int or int in get_args(field.annotation)
    return False
