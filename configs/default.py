"""The default experiment, ResNet-20 on scikit-learn's digits, and every key with its default: see there."""

from resnet_jax.config.default import get_config

__all__ = ["get_config"]
