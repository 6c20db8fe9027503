"""Warm executors: Ray Train worker groups that serve run after run."""
