"""What an operator does with a run's store as a whole."""
