"""`pipeline/command.py`: what flags and a file come to, together."""

import pytest

from adu.errors import UserError
from pipeline.command import load_config, run_command
from pipeline.train import SHORTCUTS, TrainCommandConfig


def method(flags, tmp_path, file=""):
    """The method that a command line, with a YAML file below it, comes to."""
    config = tmp_path / "file.yaml"
    config.write_text(f"forget: [sketch]\n{file}")
    arguments = ["--config", str(config), *flags.split()]
    return load_config(TrainCommandConfig, SHORTCUTS, arguments).method


@pytest.mark.parametrize(
    "flags",
    [
        "--method adu --method.gamma 3",
        "--method.gamma 3 --method adu",
        "--method=adu --method.gamma=3",
        "--method.name adu --method.gamma 3",
        "--method adu --method.name adu --method.gamma 3",
        "--method.gamma 3",
        '--method {"name":"adu"} --method.gamma 3',
    ],
)
def test_a_methods_name_leaves_its_other_flags_alone(flags, tmp_path):
    # They were dropped without a word: the run had the defaults.
    found = method(flags, tmp_path)
    assert (found.name, found.gamma, found.lambda_) == ("adu", 3.0, 10.0)


@pytest.mark.parametrize(
    ("file", "flags", "name", "n_ctx"),
    [
        ("method: coop", "--method.n-ctx 4", "coop", 4),
        ("method: coop", "--method coop", "coop", 16),
        ("method: {name: coop, n_ctx: 4}", "--method coop", "coop", 4),
        # Another method takes none of the file's options, which it may not have.
        ("method: {gamma: 3, n_ctx: 4}", "--method coop", "coop", 16),
        ("method: {name: coop, init: a photo of a}", "--method adu --method.n-ctx 4", "adu", 4),
    ],
)
def test_flags_go_over_a_files_method(file, flags, name, n_ctx, tmp_path):
    found = method(flags, tmp_path, file)
    assert (found.name, found.n_ctx) == (name, n_ctx)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--method magic", "method.name = 'magic': unknown method (known: "),
        ("--method coop --method.gamma 3", "command line: unknown field 'method.gamma' (known: "),
        ("--method coop --method.name adu", "command line: method = 'coop': but method.name = "),
    ],
)
def test_a_method_that_cannot_be_is_one_line(flags, says, tmp_path):
    with pytest.raises(UserError) as error:
        method(flags, tmp_path)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--train.epoch 3", "unknown flag '--train.epoch' (near it: --train.epochs, "),
        ("--method.gama=3", "unknown flag '--method.gama' (near it: --method.gamma, "),
        ("--zzz", "unknown flag '--zzz' (--help lists all)"),
        ("--train.hflip perhaps", "'perhaps' belongs to no flag (--help lists them)"),
        ("--train.epochs", "argument --train.epochs/--epochs: expected one argument"),
    ],
)
def test_a_flag_that_is_not_there_is_one_line(flags, says, capsys):
    arguments = ["--forget", "sketch", *flags.split()]
    assert run_command(TrainCommandConfig, no_body, SHORTCUTS, arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: command line: {says}")
    assert err.count("\n") == 1


def no_body(_):
    raise AssertionError("it began all the same")
