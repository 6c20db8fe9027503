"""The embedded default: synthetic pictures, and a tiny CLIP pre-trained on such pictures.

Everything here is synthetic. It lets a person run the whole method with no download; figures
obtained with it say nothing about real photographs. See README.md in this folder.
"""

from pathlib import Path

WEIGHTS_DIR = Path(__file__).parent / "weights"
