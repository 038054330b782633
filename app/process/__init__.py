"""The operating-system process: signals, standard error, logs, CPU cores, startup."""
