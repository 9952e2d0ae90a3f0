"""Configs: the defaults, files and flags, checks, and the recipe that a config means."""
