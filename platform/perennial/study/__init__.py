"""Run arms over seeds, and decide claims by their results: `perennial study`."""
