"""Verbs that train, ingest, release, measure and search."""
