"""Replay buffers that sample windows of consecutive transitions."""
