"""The version of moebind."""

__version__ = "0.1.0"
