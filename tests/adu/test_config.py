"""Wrong configuration values become one line that names field, value and what is allowed."""

from typing import get_args

import annotated_types
import pytest

from adu.config import parse_config
from adu.data.decoded import DataConfig
from adu.errors import UserError
from adu.methods import MethodConfig
from adu.models.backbone import BackboneConfig
from adu.training.config import RunConfig, TrainConfig

METHOD_CONFIGS = [get_args(member)[0] for member in get_args(get_args(MethodConfig)[0])]
CONFIGS = [BackboneConfig, DataConfig, TrainConfig, *METHOD_CONFIGS]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"forget": ["sketch"], "train": {"epochz": 3}},
            r"run.yaml: unknown field 'train.epochz' \(known: epochs, batch_size, optimizer, lr",
        ),
        (
            {"forget": ["sketch"], "train": {"epochs": 0}},
            "run.yaml: train.epochs = 0: input should be greater than or equal to 1",
        ),
        (
            {"forget": ["sketch"], "train": {"lr": "fast"}},
            "run.yaml: train.lr = 'fast': input should be a valid number",
        ),
        (
            {"forget": ["sketch"], "train": {"lr": float("inf")}},
            "run.yaml: train.lr = inf: input should be a finite number",
        ),
        (
            {"forget": ["sketch"], "method": {"gamma": -1}},
            "run.yaml: method.gamma = -1: input should be greater than or equal to 0",
        ),
        (
            {"forget": ["sketch"], "method": {"name": "baseline", "gamma": 1}},
            r"run.yaml: unknown field 'method.gamma' "
            r"\(known: n_ctx, depth, init_std, text_n_ctx, text_init, text_depth, forget_loss, ",
        ),
        (
            {"forget": ["sketch"], "method": {"name": "amnesia"}},
            r"method.name = 'amnesia': unknown method \(known: zero_shot, baseline, adu, ",
        ),
        ({"forget": ["sketch"], "method": None}, "method = None .allowed: a method's name, or"),
        ({"forget": ["sketch"], "method": [1]}, r"method = .1. .allowed: a method's name, or"),
        ({"method": {}}, "run.yaml: field 'forget' is missing"),
    ],
)
def test_one_line_names_field_value_and_allowed(values, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(RunConfig, values, "run.yaml")
    assert "\n" not in str(caught.value)


def test_lambda_is_written_by_its_name():
    run = parse_config(RunConfig, {"forget": ["sketch"], "method": {"lambda": 3}}, "run.yaml")
    assert run.method.lambda_ == 3
    assert run.model_dump(by_alias=True)["method"]["lambda"] == 3


def bounds():
    """Every bound of every option: configuration, name, a value beyond it, and the bound."""
    beyond = {
        annotated_types.Ge: lambda bound: (bound.ge - 1, bound.ge),
        annotated_types.Gt: lambda bound: (bound.gt, bound.gt),
        annotated_types.Le: lambda bound: (bound.le + 1, bound.le),
        annotated_types.Lt: lambda bound: (bound.lt, bound.lt),
    }
    for config in CONFIGS:
        for name, field in config.model_fields.items():
            for bound in field.metadata:
                if type(bound) in beyond:
                    yield config, field.alias or name, *beyond[type(bound)](bound)


@pytest.mark.parametrize(("config", "name", "value", "bound"), list(bounds()))
def test_a_value_beyond_its_bound_is_named_with_the_bound(config, name, value, bound):
    values = {"manifest": "m"} if config is DataConfig else {}
    with pytest.raises(UserError) as caught:
        parse_config(config, {**values, name: value}, "file.yaml")
    message = str(caught.value)
    assert message.startswith(f"file.yaml: {name} = {value}: input should be ")
    assert message.endswith(f"than {bound}") or message.endswith(f"equal to {bound}")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_number_has_a_bound(config):
    for name, field in config.model_fields.items():
        if field.annotation in (int, float, int | None, float | None):
            assert field.metadata, f"{config.__name__}.{name} takes any number"


def test_a_long_value_is_shown_in_part():
    with pytest.raises(UserError) as raised:
        parse_config(DataConfig, {"shots": {"n": "x" * 1000}}, "file.yaml")
    assert str(raised.value).startswith("file.yaml: shots = {'n': 'xxx")
    assert len(str(raised.value)) < 200


def test_a_caption_without_the_class_is_told_before_a_model_is_loaded():
    with pytest.raises(UserError, match="line: template = 'a photo': must contain {class}"):
        parse_config(BackboneConfig, {"template": "a photo"}, "command line")
