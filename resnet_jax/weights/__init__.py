"""Weights of other libraries: safe readers of their files, tables of their names, and one strict conversion."""
