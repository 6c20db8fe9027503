"""Warm executors: workers that serve run after run."""
