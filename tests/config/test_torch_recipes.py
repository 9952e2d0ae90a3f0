"""Nets and losses of recipes against torch and timm, where they are installed."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from resnet_jax import create_model
from resnet_jax.training.metrics import LOSSES
from resnet_jax.training.step import create_state, make_train_step
from tests.models.test_torch_parity import to_flax, torch, torchvision, with_random_norms


def blur_before_strided_convolutions(module):
    """In place, by the rule of ffcv-imagenet (`apply_blurpool`): inputs of fewer than 16 channels stay sharp."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Conv2d) and child.stride != (1, 1) and child.in_channels >= 16:
            blur = torch.nn.Conv2d(child.in_channels, child.in_channels, 3, 1, 1, 1, child.in_channels, bias=False)
            blur.weight.data[:] = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
            setattr(module, name, torch.nn.Sequential(blur, child))
        else:
            blur_before_strided_convolutions(child)


@pytest.mark.parametrize(("name", "block"), [("resnet18", "BasicBlock"), ("resnet50", "Bottleneck")])
def test_logits_of_a_blurred_net_equal_those_of_torchvisions_by_the_rule_of_ffcv(name, block):
    torch.manual_seed(0)
    sizes = (1, 1, 1)
    net = torchvision.models.ResNet(getattr(torchvision.models.resnet, block), (*sizes, 1), num_classes=10)
    net.layer4, net.fc = torch.nn.Identity(), torch.nn.Linear(net.layer4[0].conv1.in_channels, 10)
    net = with_random_norms(net).eval()
    variables = to_flax(net.state_dict())
    images = np.random.default_rng(0).normal(size=(2, 72, 64, 3)).astype(np.float32)
    torch_images = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        sharp = net(torch_images).numpy()
        blur_before_strided_convolutions(net)
        expected = net(torch_images).numpy()
    model = create_model(name, num_classes=10, stage_sizes=sizes, downsample="blur")
    logits = jax.jit(model.apply, static_argnames="train")(variables, images, train=False)
    assert np.abs(expected - sharp).max() > 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def test_drop_rates_equal_timms():
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet50", drop_path_rate=0.05)
    blocks = [block for stage in (net.layer1, net.layer2, net.layer3, net.layer4) for block in stage]
    expected = [block.drop_path.drop_prob if block.drop_path else 0.0 for block in blocks]
    found = create_model("resnet50", num_classes=1000, stochastic_depth=0.05).drop_rates
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("scale", [1, 100])
def test_losses_equal_torchs_per_example(scale):
    rng = np.random.default_rng(0)
    logits = scale * rng.normal(size=(6, 10)).astype(np.float32)
    targets = rng.dirichlet(np.ones(10), size=6).astype(np.float32)
    functional, tensors = torch.nn.functional, (torch.tensor(logits), torch.tensor(targets))
    softmax = functional.cross_entropy(*tensors, reduction="none")
    np.testing.assert_allclose(LOSSES["softmax"](logits, targets), softmax, rtol=1e-5)
    bce = functional.binary_cross_entropy_with_logits(*tensors, reduction="none").mean(1)
    np.testing.assert_allclose(LOSSES["bce"](logits, targets), bce, rtol=1e-5)


class GivenLogits(nn.Module):
    """The images are the logits."""

    @nn.compact
    def __call__(self, images, *, train):
        return images[:, 0, :, 0] + self.param("bias", nn.initializers.zeros, (1, images.shape[2]))


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_smoothed_and_thresholded_binary_cross_entropy_equals_timms(threshold):
    timm_loss = pytest.importorskip("timm.loss").BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold)
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 10)).astype(np.float32), rng.integers(10, size=6)
    model, optimizer, key = GivenLogits(), optax.sgd(1.0), jax.random.key(0)
    batch = {"image": logits[:, None, :, None], "target": jax.nn.one_hot(labels, 10)}
    state = create_state(model, optimizer, key, key, batch["image"], with_ema=False)
    step = make_train_step(model, optimizer, loss="bce", label_smoothing=0.1, bce_threshold=threshold)
    new, sums = step(state, batch)
    tensor = torch.tensor(logits, requires_grad=True)
    loss = timm_loss(tensor, torch.tensor(labels))
    loss.backward()
    assert float(sums["loss"]) / 6 == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(new.params["bias"][0], -tensor.grad.sum(0), atol=1e-6)
