"""Approximate Domain Unlearning for CLIP-like models, in plain PyTorch and open_clip."""
