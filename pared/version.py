"""The version of this code, known also where it is not installed as a package."""

__version__ = "0.1.0"
