"""Weights whose rows lie on several processes."""
