"""What `GODS` is made of: the objective, where it starts, and the features it sees."""
