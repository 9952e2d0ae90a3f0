import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import create_model
from resnet_jax.models import SHORTCUTS
from resnet_jax.models.downsample import blur
from tests.models.nets import KEY, shapes_of


def test_convolutions_start_as_he_normal_fan_out():
    variables = create_model("resnet18", num_classes=10).init(KEY, jnp.zeros((1, 64, 64, 3)), train=False)
    for block, fan_out in (("stage2_block2", 9 * 128), ("stage4_block1", 9 * 512)):
        kernel = np.asarray(variables["params"][block]["conv1"]["kernel"])
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_out), rel=0.02)
        assert abs(kernel.mean()) < 0.02 * kernel.std()
        assert np.abs(kernel).max() > 3.5 * kernel.std()  # normal, not truncated at two deviations


def test_a_blur_spreads_a_pixel_binomially_and_is_zero_padded():
    pixel = np.zeros((1, 5, 6, 2), np.float32)
    pixel[0, 2, 3, 1] = 16
    expected = np.zeros_like(pixel)
    expected[0, 1:4, 2:5, 1] = [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    np.testing.assert_array_equal(blur(pixel), expected)
    blurred = blur(np.full((1, 5, 6, 2), 16, np.float32))
    np.testing.assert_array_equal(blurred[:, 1:-1, 1:-1], np.full((1, 3, 4, 2), 16))
    np.testing.assert_array_equal(blurred[0, :, 0, 0], [9, 12, 12, 12, 9])


@pytest.mark.parametrize(
    ("name", "shortcut"),
    [("resnet50", "B"), ("resnet50_v1", "B"), *(("preact_resnet164", s) for s in SHORTCUTS), ("resnet20", "C")],
)
def test_all_strided_convolutions_of_blocks_see_a_blurred_input_and_no_parameter_is_new(name, shortcut, monkeypatch):
    overrides = {"shortcut": shortcut, "stage_sizes": (1, 2, 1)}
    events = []

    def recording_blur(x):
        events.append(("blur", x.shape))
        return x

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv) and context.module.strides != (1, 1):
            events.append((context.module.name, args[0].shape))
        return call(*args, **kwargs)

    monkeypatch.setattr("resnet_jax.models.downsample.blur", recording_blur)
    with nn.intercept_methods(record):
        blurred = shapes_of(create_model(name, num_classes=10, downsample="blur", **overrides), 64)
    convs = [event for event in events if event[1] != (1, 64, 64, 3)]  # without the stem's
    assert [kind for kind, _ in convs[::2]] == ["blur"] * (4 if shortcut in ("B", "B_slim", "C", "highway") else 2)
    assert [shape for _, shape in convs[::2]] == [shape for kind, shape in convs[1::2] if kind != "blur"]
    assert blurred == shapes_of(create_model(name, num_classes=10, **overrides), 64)
