"""The ways of merging, a small class each."""
