"""Plug-ins for Perennial: one of every extension point."""
