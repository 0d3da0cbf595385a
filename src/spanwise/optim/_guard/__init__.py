"""What keeps an update out of, or within, a subspace; a piece that any optimizer can use."""
