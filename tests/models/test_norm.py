import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.models.norm import no_norm
from tests.models.nets import KEY, count, params_of, published_counts, shapes_of


def test_group_norm_resnet50_has_the_published_number_of_parameters():
    model = create_model("resnet50", num_classes=1000, norm="group")
    assert count(shapes_of(model, 224)["params"]) == published_counts()["resnet50_gn"]


def test_no_norm_is_the_shift_of_a_biased_convolution():
    params = params_of("resnet20", norm="none")
    assert count(params) == 269_722 - (16 * 7 + 32 * 6 + 64 * 6)  # the scales of its 19 norms
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    shift = no_norm(name=None, train=True, dtype=jnp.float32)
    np.testing.assert_array_equal(shift.init(KEY, x)["params"]["bias"], np.zeros(4))
    bias = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
    expected = np.stack([x[..., channel] + bias[channel] for channel in range(4)], axis=-1)
    np.testing.assert_array_equal(shift.apply({"params": {"bias": bias}}, x), expected)


def test_norms_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="norm.groups: expected a divisor of the 16 channels of bn1, found 32; try 16"):
        shapes_of(create_model("resnet20", num_classes=10, norm="group"), 32)
    with pytest.raises(UserError, match="model.zero_init_last_scale.*model.shortcut=skipinit"):
        shapes_of(create_model("resnet20", num_classes=10, norm="none", zero_init_last_scale=True), 32)
