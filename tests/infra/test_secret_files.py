"""Secrets: made once, for their owner alone, and named but not told in what others may see."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from infra.stack.lifecycle import create_folder
from infra.stack.secret_files import NAMES, Secrets, shell_script
from infra.stack.settings import Settings
from tests.infra.stacks import environment
from tests.small_disk import small_disk


def test_secrets_are_made_once_and_private(tmp_path):
    secrets = Secrets(tmp_path / "secrets")
    secrets.create()
    first = {name: secrets.read(name) for name in NAMES}
    secrets.create()
    assert {name: secrets.read(name) for name in NAMES} == first
    assert len(set(first.values())) == len(NAMES)
    assert stat.S_IMODE(secrets.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets.folder.iterdir()} == {0o600}


def test_the_file_to_source_sets_secrets_without_holding_them(tmp_path):
    folder = tmp_path / "it's here"
    secrets = Secrets(folder / "secrets")
    folder.mkdir()
    secrets.create()
    script = shell_script(Settings(folder), secrets)
    assert not [name for name in NAMES if secrets.read(name) in script]
    (tmp_path / "env.sh").write_text(script)
    found = environment(tmp_path)
    assert found["AWS_SECRET_ACCESS_KEY"] == secrets.read("s3-search")
    assert found["MLFLOW_TRACKING_PASSWORD"] == secrets.read("mlflow-search")
    assert found["PGPASSWORD"] == secrets.read("postgres-search")
    assert Path(found["RAY_AUTH_TOKEN_PATH"]).read_text() == secrets.read("ray-token")
    assert found["OPTUNA_STORAGE"] == "postgresql+psycopg://search@127.0.0.1:55432/studies"


def test_a_job_does_not_take_the_stack_with_its_working_directory(tmp_path):
    project = tmp_path / "project"
    folder = project / "mine" / "stack"
    create_folder(folder)
    Secrets(folder / "secrets").create()
    (project / "code.py").write_text("print()")
    package = tmp_path / "package.zip"
    create_package(str(project), package, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(package) as archive:
        assert [name for name in archive.namelist() if not name.endswith("/")] == ["code.py"]


def test_a_disk_that_fills_up_leaves_no_empty_password(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        secrets = Secrets(disk.folder / "secrets")
        secrets.folder.mkdir()
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            secrets.write("ray-token", "x" * 8192)
        assert not secrets.path("ray-token").exists()
