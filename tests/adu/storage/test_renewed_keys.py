"""Temporary keys that somebody renews in the AWS files are taken up, in time or a little late."""

import threading
import time

import pytest

from adu import storage
from adu.errors import UserError
from adu.storage.s3 import s3_settings
from tests.s3 import ACCESS_KEY, RENEWED_KEY, RENEWED_SECRET, SECRET_KEY


@pytest.fixture
def credentials(s3_proxy, monkeypatch, tmp_path):
    """The keys in a file alone; gives the function that renews them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    def renew(key, secret, more=""):
        new = tmp_path / "new"
        new.write_text(
            f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n{more}"
        )
        new.replace(file)

    renew(ACCESS_KEY, SECRET_KEY)
    return renew


def test_keys_that_were_renewed_are_used_at_once(s3, s3_proxy, credentials):
    storage.write_bytes(f"{s3}/file", b"bytes")
    credentials(RENEWED_KEY, RENEWED_SECRET)
    s3_proxy.expired.add(ACCESS_KEY)
    assert storage.read_bytes(f"{s3}/file") == b"bytes"
    assert storage.names_in(s3) == ["file"]
    assert dict(storage.files_below(s3)) == {"file": 5}
    assert s3_proxy.broken["expired"] == 0


def test_who_renews_them_may_be_late(s3, s3_proxy, credentials):
    storage.write_bytes(f"{s3}/file", b"bytes")
    s3_proxy.expired.add(ACCESS_KEY)

    def later():
        time.sleep(0.5)
        credentials(RENEWED_KEY, RENEWED_SECRET)

    threading.Thread(target=later).start()
    assert storage.read_bytes(f"{s3}/file") == b"bytes"
    assert s3_proxy.broken["expired"] > 0


@pytest.mark.parametrize("look", [storage.read_bytes, storage.size_bytes, storage.exists])
def test_keys_that_nobody_renews_are_one_line(s3, s3_proxy, credentials, monkeypatch, look):
    monkeypatch.setattr("adu.storage.persistence.LONGEST_PAUSE_S", 0.01)
    storage.write_bytes(f"{s3}/file", b"bytes")
    s3_proxy.expired.add(ACCESS_KEY)
    with pytest.raises(UserError, match="/file: the session token has expired, and"):
        look(f"{s3}/file")


def test_what_renews_itself_is_left_to_it(credentials, monkeypatch):
    credentials("key", "secret", "aws_session_token=token\n")
    assert (s3_settings().key, s3_settings().token) == ("key", "token")
    credentials("key", "secret", "credential_process=/bin/true\n")
    assert s3_settings().key is None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the environment")
    assert s3_settings().key == "of the environment"
