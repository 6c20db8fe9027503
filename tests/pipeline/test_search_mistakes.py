"""What a user of the search can get wrong: one line, exit code 2, and nothing left behind."""

from __future__ import annotations

import pytest

from pipeline.search import main
from tests.pipeline import commands
from tests.pipeline.searches import config, refused, write_config
from tests.tiny import DOMAINS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"forget": [["drawing"]]},
            f"forget domain 'drawing': unknown (known domains: {', '.join(DOMAINS)})",
        ),
        ({"forget": [list(DOMAINS)]}, "is all domains, none is left to retain"),
        ({"context.data.manifest": "/nowhere/manifest"}, "manifest /nowhere/manifest: "),
        ({"context.data.shots": 500}, "500"),
        ({"train.epochs": "many"}, "train.epochs"),
        ({"train.epoch": 3}, "train.epoch"),
        ({"method": {"name": "erase"}}, "erase"),
        ({"space.method.colour": {"low": 1, "high": 2, "default": 1}}, "method.colour"),
        ({"tracking.uri": "http://127.0.0.1:9"}, "tracking.uri http://127.0.0.1:9: no MLflow"),
        ({"output": "s3://bucket/out"}, "tracking.uri: must be set where the output is a URL"),
        ({"output": "/proc/search"}, "output /proc/search: cannot be written"),
        ({"resources.executors": 5000}, "5000 executors of 1 worker need 5000 x 1 CPU"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(data, tmp_path, capsys, changes, says):
    values = config(data) | {"output": str(tmp_path / "results" / "out")}
    for path, value in changes.items():
        *parents, name = path.split(".", path.count(".") if "space" not in path else 1)
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    file = write_config(tmp_path / "search.yaml", values)
    assert says in refused(capsys, "--config", file)
    assert not (tmp_path / "results" / "out").exists()


@pytest.mark.faults
def test_executors_that_do_not_start_in_time_are_told_of(data, tmp_path):
    values = config(data) | {"output": str(tmp_path / "out")}
    values["resources"]["start_timeout_s"] = 0.5
    file = write_config(tmp_path / "search.yaml", values)
    code, _, err = commands.run("search.py", ["--config", file])
    assert code == 2, err
    assert "error: resources: executors not ready within 0.5 s: asked for 2 x 1 workers" in err
    assert "free in the cluster: " in err
    assert not (tmp_path / "out").exists()


def test_a_job_needs_an_absolute_output(data, tmp_path, capsys, monkeypatch):
    # Where Ray unpacks a job's working directory.
    folder = tmp_path / "working_dir_files" / "package"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    file = write_config(tmp_path / "search.yaml", config(data) | {"output": "results/job"})
    line = refused(capsys, "--config", file)
    assert "output results/job: must be an absolute path or a URL in a Ray job" in line


def test_debug_shows_where_a_mistake_was_noticed(data, tmp_path, capsys):
    file = write_config(tmp_path / "search.yaml", config(data) | {"forget": [["drawing"]]})
    assert main(["--config", file, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unreachable_bucket_is_noticed_before_anything_starts(
    data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    values = config(data) | {"output": str(tmp_path / "out")}
    values["context"]["data"]["manifest"] = "s3://bucket/manifest"
    file = write_config(tmp_path / "search.yaml", values)
    assert "s3://bucket/manifest" in refused(capsys, "--config", file)
    assert not (tmp_path / "out").exists()


def test_the_demos_model_is_not_taken_for_other_images(data, tmp_path, capsys):
    # Without a configuration file the rest is the demo's.
    flags = ["--manifest", str(data / "manifest"), "--output", str(tmp_path / "out")]
    line = refused(capsys, *flags, "--shots", "2", "--context.data.val-shots", "1")
    assert "context.backbone.name 'demo': has seen drawn pictures alone" in line
    assert not (tmp_path / "out").exists()


def test_an_address_where_nobody_is_is_told_at_once(data, tmp_path, capsys, free_port):
    file = write_config(tmp_path / "search.yaml", config(data) | {"output": str(tmp_path / "out")})
    line = refused(capsys, "--config", file, "--address", f"127.0.0.1:{free_port}")
    assert f"address '127.0.0.1:{free_port}': no Ray cluster answers there" in line
    assert not (tmp_path / "out").exists()
