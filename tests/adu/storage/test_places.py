"""URLs become file systems, and what is wrong with one becomes one line."""

import os
import pickle

import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from ray.train._internal.storage import StorageContext

from adu import storage
from adu.errors import UserError
from adu.storage.s3 import mlflow_variables


def urls(tmp_path, s3):
    return [str(tmp_path / "a"), f"file://{tmp_path}/b", "memory://c", f"{s3}/d"]


def test_bytes_come_back_from_every_kind_of_url(tmp_path, s3):
    for base in urls(tmp_path, s3):
        url = storage.join(base, "folder", "file")
        assert not storage.exists(url)
        storage.write_bytes(url, b"bytes")
        assert storage.exists(url)
        assert storage.read_bytes(url) == b"bytes"


def test_arrow_sees_the_same_files(tmp_path, s3):
    for base in urls(tmp_path, s3):
        storage.write_bytes(storage.join(base, "file"), b"bytes")
        fs, path = storage.arrow_filesystem_for(storage.join(base, "file"))
        with fs.open_input_stream(path) as stream:
            assert stream.read() == b"bytes"


def test_a_local_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "file"
    storage.write_bytes(str(file), b"old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(UserError):
        storage.write_bytes(str(file), b"new")
    assert file.read_bytes() == b"old"


def test_check_reachable_accepts_what_can_be_written_and_leaves_nothing(tmp_path, s3):
    storage.check_reachable(f"{s3}/results", write=True)
    storage.check_reachable(str(tmp_path / "results"), write=True)
    assert list((tmp_path / "results").iterdir()) == []
    fs, path = storage.filesystem_for(s3)
    assert fs.find(path) == []


def refusal(url, **kwargs):
    with pytest.raises(UserError) as caught:
        storage.check_reachable(url, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_bucket_is_named(s3):
    assert refusal("s3://no-such-bucket/x").startswith("s3://no-such-bucket/x: no such")


def test_a_wrong_key_is_told(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "access key or its secret is wrong" in refusal(s3) or "permission" in refusal(s3)


def test_a_dead_endpoint_is_told(s3, monkeypatch, free_port):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert f"cannot connect to http://127.0.0.1:{free_port}" in refusal(s3)


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(str(tmp_path / "file" / "results"), write=True)
    assert "is a file, not a folder" in message


def test_an_unknown_protocol_is_told():
    assert "ftpx" in refusal("ftpx://host/path")


def test_a_file_is_replaced_only_if_it_is_still_what_it_was(tmp_path, s3):
    for base in urls(tmp_path, s3):
        check_replacing(storage.join(base, "deep", "file"))


def check_replacing(file):
    assert not storage.replace_bytes(file, b"a", b"something")
    assert storage.replace_bytes(file, b"a", None)
    assert not storage.replace_bytes(file, b"b", None)
    assert storage.replace_bytes(file, b"b", b"a")
    assert not storage.replace_bytes(file, b"c", b"a")
    assert storage.read_bytes(file) == b"b"


def test_folders_are_listed_copied_and_removed(tmp_path, s3):
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "a").write_bytes(b"a")
    (tmp_path / "from" / "deep" / "b").write_bytes(b"b")
    for base in urls(tmp_path, s3):
        check_folder(storage.join(base, "copied"), tmp_path / "from")


def check_folder(folder, local):
    assert storage.names_in(folder) == []
    storage.remove(folder, recursive=True)
    storage.upload_folder(local, folder)
    assert storage.names_in(folder) == ["a", "deep"]
    assert storage.read_bytes(storage.join(folder, "deep", "b")) == b"b"
    storage.remove(storage.join(folder, "a"))
    assert storage.names_in(folder) == ["deep"]
    storage.remove(folder, recursive=True)
    # SeaweedFS lists a folder for a while after what was in it.
    assert not storage.exists(storage.join(folder, "deep", "b"))


def test_ray_writes_where_everybody_else_does(s3):
    fs, path = storage.arrow_filesystem_for(f"{s3}/ray")
    ray_storage = StorageContext(path, "experiment", storage_filesystem=fs)
    with ray_storage.storage_filesystem.open_output_stream(f"{path}/experiment/x") as stream:
        stream.write(b"bytes")
    assert storage.read_bytes(f"{s3}/ray/experiment/x") == b"bytes"


def test_a_file_system_reaches_other_processes(s3):
    fs, path = pickle.loads(pickle.dumps(storage.arrow_filesystem_for(f"{s3}/file")))
    with fs.open_output_stream(path) as stream:
        stream.write(b"bytes")
    assert storage.read_bytes(f"{s3}/file") == b"bytes"


def test_mlflow_is_told_the_same_server(s3, monkeypatch, tmp_path):
    for name, value in mlflow_variables().items():
        monkeypatch.setenv(name, value)
    repository = get_artifact_repository(f"{s3}/artifacts")
    (tmp_path / "file").write_bytes(b"bytes")
    repository.log_artifact(str(tmp_path / "file"))
    assert storage.read_bytes(f"{s3}/artifacts/file") == b"bytes"


@pytest.fixture
def profile(s3, monkeypatch, tmp_path):
    """The server's settings in a profile, and no variable but its name."""
    settings = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    for name in settings:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[tests]\naws_access_key_id={settings['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key={settings['AWS_SECRET_ACCESS_KEY']}\n"
    )
    (tmp_path / "config").write_text(
        "[profile tests]\nregion=eu-west-3\nservices=here\n"
        f"[services here]\ns3=\n  endpoint_url={settings['AWS_ENDPOINT_URL_S3']}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "tests")
    return settings


def test_a_profile_says_all_that_the_variables_do(s3, profile):
    storage.write_bytes(f"{s3}/file", b"bytes")
    assert storage.read_bytes(f"{s3}/file") == b"bytes"
    variables = mlflow_variables()
    assert variables["MLFLOW_S3_ENDPOINT_URL"] == profile["AWS_ENDPOINT_URL_S3"]
    assert variables["AWS_DEFAULT_REGION"] == "eu-west-3"


def test_a_profile_that_is_not_there_is_told(profile, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match="AWS_PROFILE 'nobody': no such profile"):
        storage.filesystem_for("s3://bucket/x")


@pytest.mark.parametrize("name", ["AWS_MAX_ATTEMPTS", "ADU_READ_TIMEOUT_S"])
def test_a_variable_that_is_no_number_is_told(name, monkeypatch):
    monkeypatch.setenv(name, "many")
    with pytest.raises(UserError, match=f"{name} = 'many': is not a number above 0"):
        storage.filesystem_for("s3://bucket/x")


@pytest.mark.parametrize("content", [b"region = \xe9", b"[profile tests]\nregion", b"region"])
def test_aws_files_that_cannot_be_read_are_told(profile, tmp_path, content):
    (tmp_path / "config").write_bytes(content)
    with pytest.raises(UserError, match="AWS configuration files|AWS_PROFILE 'tests'"):
        storage.filesystem_for("s3://bucket/x")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("zip://a::file:///b.zip", "is made of several URLs"),
        ("simplecache::s3://bucket/x", "is made of several URLs"),
        ("s3://bucket/x::file:///etc/hostname", "is made of several URLs"),
        ("s3://bucket//x", "has a part '' between slashes"),
        ("s3://bucket/x//y", "has a part '' between slashes"),
        ("memory://a/../b", "has a part '..' between slashes"),
        ("s3://bucket/./x", "has a part '.' between slashes"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/x?versionId=1", "has '?versionId=' in a name"),
        ("zip://x", "zip://x: "),
        ("ftpx://host/x", "ftpx://host/x: "),
    ],
)
def test_a_url_that_would_mean_something_else_is_one_line(url, says):
    # s3://bucket//x once lost the first letter of every name, and a chain was opened.
    listed = lambda url: list(storage.files_below(url))  # noqa: E731
    for use in (storage.exists, storage.read_bytes, listed, storage.names_in):
        with pytest.raises(UserError) as error:
            use(url)
        assert says in str(error.value)
        assert "\n" not in str(error.value)


ODD_NAMES = ["a::b", "[x]", "*", "é%20+&", "a?b", "a#b", "50%", "写真", "a:b", "...", "{y}", "$(z)"]


def test_any_name_is_a_name_and_no_pattern(tmp_path, s3):
    for base in urls(tmp_path, s3):
        folder = storage.join(base, "odd")
        for name in ODD_NAMES:
            storage.write_bytes(storage.join(folder, name), name.encode())
        assert storage.names_in(folder) == sorted(ODD_NAMES)
        assert dict(storage.files_below(folder)) == {name: len(name.encode()) for name in ODD_NAMES}
        left = set(ODD_NAMES)
        for name in ODD_NAMES:
            url = storage.join(folder, name)
            assert storage.read_bytes(url) == name.encode()
            assert storage.read_range(url, 0, 1) == name.encode()[:1]
            # "*" once took all others along.
            storage.remove(url)
            left.remove(name)
            assert set(dict(storage.files_below(folder))) == left


def test_a_folder_of_an_odd_name_is_removed_alone(tmp_path, s3):
    for place in urls(tmp_path, s3):
        base = storage.join(place, "patterns")
        for folder in ("*", "[x]", "x", "other"):
            storage.write_bytes(storage.join(base, folder, "deep", "file"), b"x")
        storage.remove(storage.join(base, "*"), recursive=True)
        storage.remove(storage.join(base, "[x]"), recursive=True)
        assert set(dict(storage.files_below(base))) == {"x/deep/file", "other/deep/file"}
        assert not storage.exists(storage.join(base, "[x]", "deep", "file"))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a/b/", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("local:///a/b", "/a/b"),
        ("//a//b", "/a/b"),
        ("/", "/"),
        ("/a/~b", "/a/~b"),
        ("/a/b://c", "/a/b:/c"),
    ],
)
def test_local_paths(url, path):
    assert storage.filesystem_for(url)[1] == path


def test_relative_paths_are_absolute_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("a::b", "./a::b"):
        assert storage.local_path(url) == f"{tmp_path}/a::b"
    assert storage.local_path(".") == str(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.local_path("~/model") == "/home/me/model"
    for name in ("~nobody-of-this-name", "~\0"):
        assert storage.local_path(name) == f"{tmp_path}/{name}"
        with pytest.raises(UserError):
            storage.read_bytes(name)


def test_join_keeps_a_scheme_whole():
    assert storage.join("memory://", "a", "b") == "memory://a/b"
    assert storage.join("/", "a") == "/a"


@pytest.mark.timeout(20)
def test_a_pipe_or_a_device_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for read in (
            storage.read_bytes,
            storage.check_readable,
            lambda url: storage.read_range(url, 0, 1),
        ):
            with pytest.raises(UserError, match="is a pipe, socket or device, not a file"):
                read(str(path))


def test_what_is_said_of_a_path_does_not_depend_on_the_words_in_it(tmp_path):
    for name in ("bucket", "NoSuchBucket", "connect", "access key ID"):
        with pytest.raises(UserError) as error:
            storage.read_bytes(str(tmp_path / name))
        assert str(error.value) == f"{tmp_path / name}: no such file or folder"
    with pytest.raises(UserError, match="is a folder, not a file"):
        storage.read_bytes(str(tmp_path))
    long = tmp_path / f"connect{'x' * 300}"
    with pytest.raises(UserError, match="File name too long"):
        storage.read_bytes(str(long))


def test_a_key_that_is_not_there_is_not_a_bucket_that_is_not_there(s3):
    with pytest.raises(UserError, match="no such file or folder"):
        storage.read_bytes(f"{s3}/bucket")
    with pytest.raises(UserError, match="no such bucket"):
        storage.read_bytes("s3://no-such-bucket/x")
