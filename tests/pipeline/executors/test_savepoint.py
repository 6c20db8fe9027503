"""A run's last epoch in a file: whole or not there."""

from pipeline.executors.savepoint import Savepoint, read_savepoint, write_savepoint


def test_what_was_written_is_read(tmp_path):
    file = tmp_path / "deep" / "0"
    assert read_savepoint(str(file)) is None
    for epochs in ([{"epoch": 1}], [{"epoch": 1}, {"epoch": 2, "val": {"h": 0.5}}]):
        write_savepoint(str(file), Savepoint(epochs, b"\x00\n\xff"))
        assert read_savepoint(str(file)) == Savepoint(epochs, b"\x00\n\xff")
    assert [each.name for each in file.parent.iterdir()] == ["0"]
