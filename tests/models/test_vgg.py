import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import create_model
from tests.models.nets import KEY


def test_vgg_starts_as_torchvisions():
    model = create_model("vgg11", num_classes=1000)

    @jax.jit  # of the 133 million numbers only those that are returned are drawn
    def some(key):
        params = model.init(key, jnp.zeros((1, 32, 32, 3)), train=False)["params"]
        return params["fc"]["kernel"], params["stage3_conv2"]["kernel"], params["fc"]["bias"]

    dense, kernel, bias = jax.device_get(some(KEY))
    assert dense.std() == pytest.approx(0.01, rel=0.01)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    assert not bias.any()


@pytest.mark.parametrize("train", [True, False])
def test_vgg_drops_half_after_each_hidden_dense_layer_in_training_alone(train):
    calls = []

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.Dropout):
            calls.append((module.rate, module.deterministic))
        elif isinstance(module, nn.Dense):
            calls.append(module.name)
        return call(*args, **kwargs)

    keys = {"params": KEY, "dropout": KEY}
    with nn.intercept_methods(record):
        model = create_model("vgg11", num_classes=10)
        jax.eval_shape(lambda: model.init(keys, jnp.zeros((1, 32, 32, 3)), train=train))
    assert calls == ["fc1", (0.5, not train), "fc2", (0.5, not train), "fc"]
