"""Scheduled pulls of new data, which land as corpora that are named by date.

An append-only log in the store records what was pulled and which corpus it became, so that a pull
or landing that was killed is neither lost nor repeated.
"""

from perennial.sources.source import BadFileStatus, DataSource, SourceStatus

__all__ = ["BadFileStatus", "DataSource", "SourceStatus"]
