"""Scoring of trained models: needs a model, its weights and a data set, no training code."""
