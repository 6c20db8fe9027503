"""Wrong configuration values become one line that names field, value and what is allowed."""

import pytest

from adu.config import parse_config
from adu.errors import UserError
from adu.trainer import RunConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"forget": ["sketch"], "train": {"epochz": 3}},
            r"run.yaml: unknown field 'train.epochz' \(known: epochs, batch_size, lr",
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
            {"forget": ["sketch"], "method": {"gamma": -1}},
            "run.yaml: method.gamma = -1: input should be greater than or equal to 0",
        ),
        (
            {"forget": ["sketch"], "method": {"name": "baseline", "gamma": 1}},
            r"run.yaml: unknown field 'method.gamma' "
            r"\(known: n_ctx, depth, init_std, text_n_ctx, name\)",
        ),
        (
            {"forget": ["sketch"], "method": {"name": "amnesia"}},
            r"method.name = 'amnesia': unknown method \(known: zero_shot, baseline, adu, ",
        ),
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
