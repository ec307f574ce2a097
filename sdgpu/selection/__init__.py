"""Choosing lam, weights and step: losses and scores of a whole grid from one decomposition."""
