"""The one training loop and what it keeps. Knows nothing of who started it."""
