"""Pulling new data on a schedule and landing it as corpora that are named by date.

What was pulled, and what of it became which corpus, is an append-only log in the store: a pull or
a landing that was killed is found there and neither lost nor repeated.
"""

from perennial.sources.source import DataSource, SourceStatus

__all__ = ["DataSource", "SourceStatus"]
