"""Verbs that record a user's decision."""
