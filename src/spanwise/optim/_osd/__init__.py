"""The parts of Online Subspace Descent."""
