"""Studies: many runs that differ in little, their findings, pictures and report."""

from resnet_jax.studies.study import cell, grid, make_study, plain_and_residual

__all__ = ["cell", "grid", "make_study", "plain_and_residual"]
