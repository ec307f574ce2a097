"""Fits and what they answer: plans, decompositions, paths, estimators."""
