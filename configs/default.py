"""The default experiment, ResNet-20 on scikit-learn's digits. resnet_jax/config/default.py lists every key."""

from resnet_jax.config.default import get_config

__all__ = ["get_config"]
