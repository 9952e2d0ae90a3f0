"""ResNet-20 on scikit-learn's handwritten digits: the default experiment. resnet_jax/config/default.py lists every key.

    python train.py

Hardware: 2 CPU cores. Time: half a minute. Result: 99.1% test accuracy (mean of the last epoch over seeds 0 to 5,
standard deviation 0.2; python train.py --config.seed=N). No download.
"""

from resnet_jax.config.default import get_config

__all__ = ["get_config"]
