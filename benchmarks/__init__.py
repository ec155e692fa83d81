"""Benchmarks of regain against peers: other code for the same work, timed in the same process."""
