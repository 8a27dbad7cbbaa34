"""Replay of windows of consecutive transitions."""
