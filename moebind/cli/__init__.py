"""The command line: ``moebind``, or ``python -m moebind``."""
