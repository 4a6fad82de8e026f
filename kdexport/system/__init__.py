"""The process and its machine: streams, signals, files, progress, CPU and memory."""
