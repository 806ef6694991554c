"""Judging a model on held-out scenes: what moves, how much, by which verb, and what should have stood still."""
