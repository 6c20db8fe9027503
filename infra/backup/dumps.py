"""Keeps dumps in a bucket.

dumps.py upload FOLDER URL KEEP    uploads the folder's dumps; the newest KEEP stay
dumps.py fetch URL FOLDER          the newest one
"""

import sys
from pathlib import Path

from adu.storage import filesystem_for


def upload(folder: Path, url: str, keep: int) -> None:
    """Uploads first and removes after that: there is never one fewer."""
    files = sorted(folder.glob("*.dump"))
    if not files:
        sys.exit(f"error: {folder}: no dump")
    filesystem, place = filesystem_for(url)
    filesystem.makedirs(place, exist_ok=True)
    for file in files:
        filesystem.put_file(str(file), f"{place}/{file.name}")
        if filesystem.size(f"{place}/{file.name}") != file.stat().st_size:
            sys.exit(f"error: {url}/{file.name}: not whole")
    for old in dumps(url)[:-keep]:
        filesystem.rm_file(old)
    print(f"{url}: {len(dumps(url))} dumps, the newest {dumps(url)[-1].rsplit('/', 1)[-1]}")


def fetch(url: str, folder: Path) -> None:
    """Downloads the newest."""
    there = dumps(url)
    if not there:
        sys.exit(f"error: {url}: no dump")
    filesystem, _ = filesystem_for(url)
    file = folder / there[-1].rsplit("/", 1)[-1]
    filesystem.get_file(there[-1], str(file))
    # Another user restores it.
    file.chmod(0o644)


def dumps(url: str) -> list[str]:
    """All of them, the oldest first: their names are their time."""
    filesystem, place = filesystem_for(url)
    filesystem.invalidate_cache()
    if not filesystem.exists(place):
        return []
    return sorted(p for p in filesystem.ls(place, detail=False) if p.endswith(".dump"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["upload", folder, url, keep]:
            upload(Path(folder), url, int(keep))
        case ["fetch", url, folder]:
            fetch(url, Path(folder))
        case _:
            sys.exit(__doc__)
