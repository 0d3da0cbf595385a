"""Parts of the linear models of dynamics in `spanwise.estimators.koopman`."""
