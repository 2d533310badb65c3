"""Erasing of a corpus or of documents of it: what it means, what is done, what is swept."""
