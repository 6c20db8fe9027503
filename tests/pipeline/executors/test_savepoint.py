"""A run's last epoch in a file: whole or not there."""

from pipeline.executors.savepoint import Savepoint, read_savepoint, write_savepoint
from tests.small_disk import small_disk


def test_what_was_written_is_read(tmp_path):
    file = tmp_path / "deep" / "0"
    assert read_savepoint(str(file)) is None
    for epochs in ([{"epoch": 1}], [{"epoch": 1}, {"epoch": 2, "val": {"h": 0.5}}]):
        write_savepoint(str(file), Savepoint(epochs, b"\x00\n\xff"))
        assert read_savepoint(str(file)) == Savepoint(epochs, b"\x00\n\xff")
    assert [each.name for each in file.parent.iterdir()] == ["0"]


def test_a_full_disk_costs_an_epoch_and_not_the_run(tmp_path, capsys):
    with small_disk(tmp_path / "disk") as disk:
        file = disk.folder / "deep" / "0.state"
        write_savepoint(str(file), Savepoint([{"epoch": 1}], b"old"))
        disk.fill()
        write_savepoint(str(file), Savepoint([{"epoch": 2}], bytes(100_000)))
        assert f"savepoint {file}: No space left on device" in capsys.readouterr().err
        assert read_savepoint(str(file)) == Savepoint([{"epoch": 1}], b"old")
        assert [each.name for each in file.parent.iterdir()] == ["0.state"]
        disk.free()
        write_savepoint(str(file), Savepoint([{"epoch": 3}], bytes(100_000)))
        assert read_savepoint(str(file)) == Savepoint([{"epoch": 3}], bytes(100_000))
