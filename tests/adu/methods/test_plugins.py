"""A method of another package trains, is kept and comes back without a change here."""

import sys
import tomllib

import pytest
import torch

import adu
from adu.config import parse_config
from adu.errors import UserError
from adu.methods import METHODS, Method, MethodOptions
from adu.methods.plugins import GROUP, find_plugin, plugin_names
from adu.training.config import RunConfig
from pipeline.command import load_config
from pipeline.train import SHORTCUTS, TrainCommandConfig
from tests.adu.documents import code_blocks
from tests.tiny import tiny_backbone, tiny_images


@pytest.fixture(scope="module")
def recipe():
    """CONTRIBUTING's module and its entry points, as they stand there."""
    (code,) = (code for code in code_blocks("CONTRIBUTING.md", "python") if "MethodOptions" in code)
    (project,) = code_blocks("CONTRIBUTING.md", "toml")
    return code, tomllib.loads(project)["project"]["entry-points"][GROUP]


@pytest.fixture
def module(recipe, tmp_path, monkeypatch):
    """The recipe's module where Python finds it, without its entry point."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "shifted.py").write_text(recipe[0])
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield tmp_path / "packages"
    sys.modules.pop("shifted", None)


@pytest.fixture
def installed(module, recipe):
    """The same as it is once its package is installed."""
    folder = module / "shifted-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: shifted\nVersion: 1.0\n")
    points = "".join(f"{name} = {value}\n" for name, value in recipe[1].items())
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    images = adu.open_images(tiny_images(folder / "images"))
    return images, adu.load_backbone(str(tiny_backbone(folder / "model")), "cpu")


def unlearn(parts, method):
    return adu.unlearn(parts[0], "sketch", parts[1], method=method, epochs=1, shots=2, val_shots=1)


def test_contributings_recipe_works_as_it_is_written(installed, parts, tmp_path):
    assert plugin_names() == ["shift"]
    model = unlearn(parts, {"name": "shift", "init_std": 0.5})
    assert set(model.method.trainable()) == {"shift_E"}
    adu.save(model, tmp_path / "model")
    # As in another process, which has not met the module yet.
    del sys.modules["shifted"]
    loaded = adu.load(tmp_path / "model", device="cpu")
    assert loaded.card.run.method.init_std == 0.5
    assert torch.equal(loaded.method.shift_E, model.method.shift_E)
    with pytest.raises(UserError, match=r"unknown field 'sauce' .known: name, init_std"):
        unlearn(parts, {"name": "shift", "sauce": 1})


def test_the_commands_take_it_by_its_name(installed, tmp_path):
    config = load_config(TrainCommandConfig, SHORTCUTS, ["--forget", "sketch", "--method", "shift"])
    assert (config.method.name, config.method.init_std) == ("shift", 0.02)
    (tmp_path / "train.yaml").write_text("forget: sketch\nmethod: {name: shift, init_std: 0.1}\n")
    config = load_config(TrainCommandConfig, SHORTCUTS, ["--config", str(tmp_path / "train.yaml")])
    assert config.method.init_std == 0.1


def test_an_import_path_does_without_an_entry_point(module, parts, tmp_path):
    model = unlearn(parts, "shifted:Shift")
    adu.save(model, tmp_path / "model")
    assert adu.load(tmp_path / "model", device="cpu").card.run == model.card.run
    # A checkpoint does not choose what is imported.
    del sys.modules["shifted"]
    with pytest.raises(UserError, match="trained by the method 'shifted:Shift' .* import shifted"):
        adu.load(tmp_path / "model")
    assert "shifted" not in sys.modules


def test_a_configuration_of_it_is_written_out_and_read_again(installed):
    run = parse_config(RunConfig, {"forget": ["x"], "method": "shift"}, "x")
    written = run.model_dump(mode="json", by_alias=True)
    assert written["method"] == {"name": "shift", "init_std": 0.02}
    assert parse_config(RunConfig, written, "x") == run


class NoOptions(Method):
    """A method that says nothing of its options."""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobodys", f"unknown method .known: {', '.join(METHODS)}".replace("+", r"\+")),
        ("no_such_module:X", "cannot be imported .No module named 'no_such_module'"),
        ("adu.methods:X", "cannot be imported .module 'adu.methods' has no attribute 'X'"),
        (":X", "cannot be imported .Empty module name"),
        ("..adu:X", "cannot be imported"),
        ("adu.methods:METHODS", "is no method .allowed: a class that inherits"),
        (f"{__name__}:NoOptions", "is no method"),
    ],
)
def test_what_is_no_method_is_one_line(name, message):
    with pytest.raises(UserError, match=f"method.name = '{name}': {message}"):
        find_plugin(name, METHODS)


def test_names_that_are_none_are_refused_like_wrong_ones():
    for name in (["adu"], 5, None, {}):
        with pytest.raises(UserError, match="unknown method"):
            parse_config(RunConfig, {"forget": ["x"], "method": {"name": name}}, "x")
    assert MethodOptions(name="x").name == "x"
