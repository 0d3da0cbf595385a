"""The parts of MLC: coding rates, doubly stochastic memberships, the network, labels."""
