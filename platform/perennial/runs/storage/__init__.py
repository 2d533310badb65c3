"""What a run's ledger says of its store as a whole: its id, and where it is now."""
