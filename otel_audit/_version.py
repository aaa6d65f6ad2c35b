"""The version, read by the build and written into every segment header."""

__version__ = "0.1.0"
