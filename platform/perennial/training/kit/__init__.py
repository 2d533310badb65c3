"""Trunk kits: what lets others continue a trunk."""
