"""Parts of `spanwise.estimators.LRAN`."""
