"""The parts of subset norms and subspace momentum."""
