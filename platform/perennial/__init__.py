"""Perennial keeps a language model in training for as long as data keeps arriving."""

__version__ = "0.1.0"
