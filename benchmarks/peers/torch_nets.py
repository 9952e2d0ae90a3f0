"""torchvision's nets in torch, as its users train and run them: channels_last, eager or compiled.

The nets of He et al. 2015 for CIFAR, which torchvision lacks, are made of its blocks.
"""

from collections.abc import Callable

import torch
import torch.fx.experimental.optimization

from resnet_jax.errors import UserError
from resnet_jax.weights.references import import_torchvision

torchvision = import_torchvision()

_MOMENTUM_SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


class ZeroPadShortcut(torch.nn.Module):
    """Every second pixel, and zeros for as many new channels as there are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, 2C, H / 2, W / 2)."""
        return torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def cifar_resnet(depth: int, num_classes: int = 10) -> torch.nn.Module:
    """The net of 6n + 2 layers, with shortcuts of option A."""
    layers = [torch.nn.Conv2d(3, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(inplace=True)]
    inputs = 16
    for width in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            shortcut = None if inputs == width else ZeroPadShortcut()
            stride = 1 if inputs == width else 2
            layers.append(torchvision.models.resnet.BasicBlock(inputs, width, stride, shortcut))
            inputs = width
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, num_classes)
    )


def create_net(name: str, num_classes: int, small_images: bool = False) -> torch.nn.Module:
    """The net on the device at hand, channels_last; for small images torchvision's begin with a 3x3 convolution."""
    if not hasattr(torchvision.models, name):
        depth = name.removeprefix("resnet")
        if not depth.isdecimal() or int(depth) % 6 != 2:
            raise UserError(f"torch: expected a net of torchvision or resnet20, 32, 44, ..., found {name}")
        net = cifar_resnet(int(depth), num_classes)
    else:
        net = getattr(torchvision.models, name)(num_classes=num_classes)
        if small_images:
            net.conv1, net.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    return net.to(device(), memory_format=torch.channels_last)


def device() -> str:
    """`cuda` or `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Wait until the device has done what it was asked for."""
    if device() == "cuda":
        torch.cuda.synchronize()


def autocast(dtype: str) -> torch.autocast:
    """The context of mixed precision, without effect in float32."""
    return torch.autocast(device(), torch.bfloat16, enabled=dtype == "bfloat16")


def compile_net(net: torch.nn.Module) -> torch.nn.Module:
    """The compiled net, tuned as far as torch can on the device."""
    return torch.compile(net, mode="max-autotune" if device() == "cuda" else None)


def make_train_step(net: torch.nn.Module, dtype: str, compiled: bool) -> Callable:
    """A function `(images, labels)` that updates the weights once, by momentum SGD on the cross-entropy."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    optimizer = torch.optim.SGD(net.parameters(), **_MOMENTUM_SGD, fused=device() == "cuda")
    forward = compile_net(net) if compiled else net

    def train_step(images, labels):
        optimizer.zero_grad(set_to_none=True)
        with autocast(dtype):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    return train_step


def training(
    name: str, size: int, batch: int, dtype: str, *, num_classes: int, steps: int, compiled: bool
) -> Callable[[], None]:
    """A function that trains `steps` steps on one batch of noise."""
    train_step = make_train_step(create_net(name, num_classes).train(), dtype, compiled)
    images = torch.randn(batch, 3, size, size, device=device()).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device()) % num_classes

    def train():
        for _ in range(steps):
            train_step(images, labels)
        wait()

    return train


def inference(
    name: str, size: int, batch: int, dtype: str, *, num_classes: int, steps: int, compiled: bool
) -> Callable:
    """A function that computes the logits of one batch of noise `steps` times, norms folded into the convolutions."""
    net = create_net(name, num_classes).eval()
    net = torch.fx.experimental.optimization.fuse(net).to(memory_format=torch.channels_last)
    if dtype == "bfloat16":
        net = net.bfloat16()
    forward = compile_net(net) if compiled else net
    images = torch.randn(batch, 3, size, size, device=device(), dtype=getattr(torch, dtype))
    images = images.contiguous(memory_format=torch.channels_last)

    def infer():
        with torch.inference_mode():
            for _ in range(steps):
                forward(images)
        wait()

    return infer
