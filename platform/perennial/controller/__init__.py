"""Carry out what a run needs next: ingest, train, evaluate, release; the shell around `runs`."""
