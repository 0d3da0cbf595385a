"""What every optimizer of a subspace shares: groups, state, the step, the refresh."""
