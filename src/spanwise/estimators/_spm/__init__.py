"""The parts of the subspace power method: flattening, objective, search, decomposition."""
