"""Scores and predictions of a model on any data: a card, weights and a dataset are all it takes."""
