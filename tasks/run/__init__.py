"""The run: command line, configuration, devices, checkpoints, results and tracking."""
