import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import create_model
from tests.models.nets import KEY


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_the_activations_on_the_way_to_the_logits(channels):
    images = jax.random.normal(KEY, (2, 32, 32, channels))
    model = create_model("resnet20", num_classes=7)
    variables = model.init(KEY, images, train=False)
    logits, activations = model.apply(variables, images, train=False, features=True)
    assert {name: x.shape for name, x in activations.items()} == {
        "stem": (2, 32, 32, 16),
        "stage1": (2, 32, 32, 16),
        "stage2": (2, 16, 16, 32),
        "stage3": (2, 8, 8, 64),
        "pre_logits": (2, 64),
        "logits": (2, 7),
    }
    np.testing.assert_array_equal(logits, model.apply(variables, images, train=False))
    np.testing.assert_allclose(activations["pre_logits"], activations["stage3"].mean((1, 2)), rtol=1e-6)
    fc = variables["params"]["fc"]
    np.testing.assert_allclose(logits, activations["pre_logits"] @ fc["kernel"] + fc["bias"][None], rtol=1e-5)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_state():
    images = jax.random.normal(KEY, (8, 16, 16, 3))
    exact, rounded = (create_model("resnet20", num_classes=10, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = rounded.init(KEY, images, train=False)
    logits, updated = rounded.apply(variables, images, train=True, mutable=["batch_stats"])
    assert {x.dtype for x in jax.tree.leaves((variables, updated, logits))} == {jnp.dtype(jnp.float32)}
    reference, _ = exact.apply(variables, images, train=True, mutable=["batch_stats"])
    assert not np.array_equal(logits, reference)
    np.testing.assert_allclose(logits, reference, atol=0.1 * np.abs(reference).max())
