import jax.numpy as jnp
import pytest

from benchmarks import roofline
from resnet_jax.models import create_model
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.profile import profile
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEMS
from resnet_jax.planning.chips import PEAKS, Peak

H100 = PEAKS["NVIDIA H100 80GB HBM3"]


def tiny_net():
    """3x3 convolutions on 8x8: 3 to 4 channels, a block of 4 to 4 to 4; a dense layer of 4 to 2."""
    return ResNet(
        num_classes=2,
        dtype=jnp.float32,
        stage_sizes=(1,),
        block=BasicBlock,
        stem=STEMS["small"],
        shortcut=SHORTCUTS["A"],
        width=4,
    )


def test_flop_and_bytes_of_a_net_counted_by_hand():
    layers = profile(tiny_net(), (8, 8, 3))
    multiply_adds = 64 * 9 * (3 * 4 + 4 * 4 + 4 * 4) + 4 * 2
    assert roofline.flop(layers, training=False) == 2 * multiply_adds
    assert roofline.flop(layers, training=True) == 6 * multiply_adds
    output, image = 64 * 4, 64 * 3  # three convolutions, one sum
    assert roofline.traffic(layers, (8, 8, 3), 2, training=True) == 2 * (3 * 16 * output + 5 * output + 2 * image)
    assert roofline.traffic(layers, (8, 8, 3), 4, training=False) == 4 * (3 * 2 * output + output + image)


def test_typical_fusion_allows_8061_images_per_second_of_resnet50_on_an_h100():
    layers = profile(create_model("resnet50", num_classes=1000), (224, 224, 3))
    moved = roofline.traffic(layers, (224, 224, 3), 2, training=True)
    assert H100.bandwidth / moved == pytest.approx(8061, rel=0.01)
    assert moved / H100.bandwidth > roofline.flop(layers, training=True) / H100.flops["bfloat16"]


@pytest.mark.parametrize(
    ("peak", "seconds"),
    [
        (Peak({"float32": 1e9}, 1e30), 6 * 25352 / 1e9),
        (Peak({"float32": 1e30}, 1e9), 4 * (53 * 256 + 2 * 192) / 1e9),
    ],
)
def test_the_slower_of_arithmetic_and_memory_is_the_bound(monkeypatch, peak, seconds):
    monkeypatch.setattr(roofline, "device_peak", lambda: peak)
    assert roofline.training_seconds(tiny_net(), (8, 8, 3), "float32") == pytest.approx(seconds)


def test_a_device_without_published_peaks_has_no_bound(monkeypatch):
    monkeypatch.setattr(roofline, "device_peak", lambda: None)
    assert roofline.inference_seconds(tiny_net(), (8, 8, 3), "float32") is None
