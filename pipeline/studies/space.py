"""Search spaces: each range beside its default, by dotted path into a run's configuration.

In YAML::

    space:
      method.gamma: {low: 0.03, high: 30, log: true, default: 30}
      method.n_ctx: {choices: [2, 4, 8], default: 8}
      method.instapg: {choices: [true, false], default: true}
      method.instapg_layer: {low: 1, high: 3, default: 2, when: {method.instapg: true}}
      method.depth: 9        # fixed
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast, get_args

import numpy as np
import optuna
import pydantic
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BeforeValidator, Field

from adu.config import StrictModel, describe_validation_error
from adu.errors import UserError
from adu.training.config import RunConfig

Value = bool | int | float | str


def _one_or_many(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Values = Annotated[tuple[Value, ...], BeforeValidator(_one_or_many)]


class Parameter(StrictModel):
    """One searched option: a range or choices, and its default."""

    low: int | float | None = Field(None, description="smallest value of a range")
    high: int | float | None = Field(None, description="largest value of a range")
    log: bool = Field(False, description="whether a range is searched on a logarithmic scale")
    choices: tuple[Value, ...] | None = Field(
        None, min_length=1, description="the values, instead of a range"
    )
    default: Value = Field(description="the value of the first trial")
    when: dict[str, Values] = Field(
        {}, description="searched only where each of these has one of these values"
    )

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
    def fixed(self) -> bool:
        """Whether there is nothing to search."""
        return self.choices is not None and len(self.choices) == 1

    @property
    def examples(self) -> tuple[Value, ...]:
        """Values at the ends of the range, or all choices."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        return (self.low, self.high)

    def active(self, values: Mapping[str, Value]) -> bool:
        """Whether the option means anything beside values of the options before it."""
        return all(values.get(path) in allowed for path, allowed in self.when.items())

    def describe(self) -> str:
        """The range or choices as a person reads them, such as ``0.03 to 30, log``."""
        if self.choices is not None:
            return ", ".join(str(choice).lower() for choice in self.choices)
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


def _fixed(value: Any) -> Any:
    """A plain value instead of a range is fixed."""
    if isinstance(value, Mapping | Parameter):
        return value
    return {"choices": (value,), "default": value}


Space = Mapping[str, Parameter]
SpaceConfig = dict[str, Annotated[Parameter, BeforeValidator(_fixed)]]


def defaults(space: Space) -> dict[str, Value]:
    """The default of every option that means anything beside the other defaults."""
    values: dict[str, Value] = {}
    for path, parameter in space.items():
        if parameter.active(values):
            values[path] = parameter.default
    return values


def suggest(trial: optuna.Trial, space: Space, base: RunConfig) -> dict[str, Value]:
    """Has Optuna propose a value for every option that is active; fixed ones are added."""
    values: dict[str, Value] = {}
    for path, parameter in space.items():
        if not parameter.active(values):
            continue
        distribution = _distribution(path, parameter, base)
        if parameter.fixed:
            values[path] = parameter.default
        elif isinstance(distribution, CategoricalDistribution):
            values[path] = cast(Value, trial.suggest_categorical(path, distribution.choices))
        elif isinstance(distribution, IntDistribution):
            low, high = distribution.low, distribution.high
            values[path] = trial.suggest_int(path, low, high, log=distribution.log)
        else:
            assert isinstance(distribution, FloatDistribution)
            low_, high_ = distribution.low, distribution.high
            values[path] = trial.suggest_float(path, low_, high_, log=distribution.log)
    return values


def searched(space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """Of an option's values those that are searched, not fixed."""
    return {path: value for path, value in values.items() if not space[path].fixed}


def fit(space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """Values of another study brought into a space: clipped to its ranges, with its own options."""
    fitted: dict[str, Value] = {}
    for path, parameter in space.items():
        if not parameter.active(fitted):
            continue
        value: Value = values.get(path, parameter.default)
        if parameter.choices is not None:
            value = value if value in parameter.choices else parameter.default
        elif isinstance(value, str):
            value = parameter.default
        else:
            assert parameter.low is not None and parameter.high is not None
            value = min(max(value, parameter.low), parameter.high)
        fitted[path] = value
    return fitted


def grid(space: Space, base: RunConfig, points: int) -> Iterator[dict[str, Value]]:
    """Every combination of choices and of so many values in each range, without repetitions."""
    axes = {path: _points(path, parameter, base, points) for path, parameter in space.items()}
    seen: set[tuple[tuple[str, Value], ...]] = set()
    for combination in itertools.product(*axes.values()):
        values: dict[str, Value] = {}
        for (path, parameter), value in zip(space.items(), combination, strict=True):
            if parameter.active(values):
                values[path] = value
        key = tuple(values.items())
        if key not in seen:
            seen.add(key)
            yield values


def check_space(space: Space, base: RunConfig) -> None:
    """Checks that every value that a search may try is one that a run accepts.

    Raises:
        UserError: Naming the parameter, the value and what is allowed.
    """
    above: dict[str, Parameter] = {}
    for path, parameter in space.items():
        _check_condition(path, parameter, above)
        for value in (*parameter.examples, parameter.default):
            try:
                configure(base, {path: value})
            except UserError as error:
                raise UserError(f"space.{path}: {error}") from error
        above[path] = parameter


def configure(base: RunConfig, parameters: Mapping[str, Any]) -> RunConfig:
    """A run's configuration with parameters set.

    Raises:
        UserError: If the configuration does not accept one of them.
    """
    values = _with_parameters(base.model_dump(mode="json", by_alias=True), parameters)
    try:
        return RunConfig.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(describe_validation_error(error, RunConfig)) from error


def examples(space: Space) -> list[dict[str, Value]]:
    """The ends of every range and all choices, each with the values that make it matter."""
    found = []
    for path, parameter in space.items():
        needed = {other: allowed[0] for other, allowed in parameter.when.items()}
        found += [{**needed, path: value} for value in parameter.examples]
    return found


def _with_parameters(run: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    for path, value in parameters.items():
        *parents, name = path.split(".")
        place = run
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return run


def _check_condition(path: str, parameter: Parameter, above: Space) -> None:
    for other, allowed in parameter.when.items():
        if other not in above:
            raise UserError(
                f"space.{path}: when names '{other}', which must stand above it in the space "
                f"(above it: {', '.join(above) or 'nothing'})"
            )
        choices = above[other].choices
        if choices is None or not set(allowed) <= set(choices):
            values = ", ".join(map(str, choices or ())) or "a range"
            asked = ", ".join(map(str, allowed))
            raise UserError(
                f"space.{path}: when {other} = {asked}: must be choices of {other} "
                f"(it has {values})"
            )


def _distribution(path: str, parameter: Parameter, base: RunConfig) -> BaseDistribution:
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    if _is_integer(path, base):
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)


def _points(path: str, parameter: Parameter, base: RunConfig, points: int) -> list[Value]:
    if parameter.choices is not None:
        return list(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    spaced = np.geomspace if parameter.log else np.linspace
    values = spaced(parameter.low, parameter.high, points).tolist()
    if _is_integer(path, base):
        return list(dict.fromkeys(round(value) for value in values))
    return [float(value) for value in values]


def _is_integer(path: str, base: RunConfig) -> bool:
    *parents, name = path.split(".")
    model: Any = base
    for parent in parents:
        model = getattr(model, parent)
    for field_name, field in type(model).model_fields.items():
        if name in (field_name, field.alias):
            return field.annotation is int or int in get_args(field.annotation)
    return False
