"""Object stores: the one room that knows about them.

Everything that reads or writes by URL goes through here, so that credentials, endpoint and region
come from the standard AWS variables (or a profile) in one way for fsspec, pyarrow, Ray and MLflow,
and so that a store that stumbles is asked again.
"""

from adu.storage.listing import files_below, names_in
from adu.storage.persistence import MAX_TRANSFERS, pause, persistently
from adu.storage.places import (
    check_reachable,
    check_readable,
    exists,
    read_bytes,
    read_range,
    remove,
    replace_bytes,
    size_bytes,
    upload_folder,
    write_bytes,
)
from adu.storage.range_file import RangeFile
from adu.storage.urls import (
    LOCAL_SCHEMES,
    arrow_filesystem_for,
    below,
    filesystem_for,
    is_local,
    is_relative,
    join,
    local_path,
)

__all__ = [
    "LOCAL_SCHEMES",
    "MAX_TRANSFERS",
    "RangeFile",
    "arrow_filesystem_for",
    "below",
    "check_reachable",
    "check_readable",
    "exists",
    "files_below",
    "filesystem_for",
    "is_local",
    "is_relative",
    "join",
    "local_path",
    "names_in",
    "pause",
    "persistently",
    "read_bytes",
    "read_range",
    "remove",
    "replace_bytes",
    "size_bytes",
    "upload_folder",
    "write_bytes",
]
