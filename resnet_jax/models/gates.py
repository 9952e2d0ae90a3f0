"""Gates: functions `(branch, *, conv, norm)` of the end of a branch, (B, H, W, C) to the same shape."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.activation import relu


def squeeze_and_excite(branch: jax.Array, *, conv, norm) -> jax.Array:
    """The branch, each channel times a number from 0 to 1 that depends on the means of all channels.

    Hu et al. 2018 (arXiv:1709.01507, section 3, reduction ratio 16). The hidden layer has a sixteenth of the channels,
    rounded to a multiple of 8, as in timm.
    """
    channels = branch.shape[-1]
    hidden = max(8, (channels // 16 + 4) // 8 * 8)
    squeezed = jnp.mean(branch, axis=(1, 2), keepdims=True)
    excited = relu(conv(hidden, 1, use_bias=True, name="se_fc1")(squeezed))
    scale = nn.sigmoid(conv(channels, 1, use_bias=True, name="se_fc2")(excited))
    return branch * jnp.broadcast_to(scale, branch.shape)


GATES = {"se": squeeze_and_excite}
