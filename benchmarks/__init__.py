"""Measured against peers: what people would write, timed beside ours in one process."""
