"""The version, where the build can read it without torch."""

__version__ = "0.1.0"
