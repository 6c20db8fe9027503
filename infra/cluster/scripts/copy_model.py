"""Copies a model's weights to where every node reads them: copy_model.py BACKBONE URL."""

import sys
import tempfile
from pathlib import Path

from adu.models.folder import save_folder
from adu.storage import upload_folder

backbone, url = sys.argv[1:]
with tempfile.TemporaryDirectory() as scratch:
    save_folder(backbone, Path(scratch))
    upload_folder(Path(scratch), url)
print(f"{backbone} is in {url}")
