"""Runs, weights and data in buckets, like gs://bucket/run, by copies on the local disk."""
