"""The machine under a run: devices, processes, signals, checkpoints, logs, files."""
