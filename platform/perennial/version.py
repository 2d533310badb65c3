"""The version of Perennial, in one place: pyproject.toml and every module read it here."""

__version__ = "0.2.0"
