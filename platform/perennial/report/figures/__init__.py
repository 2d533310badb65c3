"""Draw the figures of reports."""
