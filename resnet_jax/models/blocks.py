"""Residual blocks: v1 (He et al. 2015, arXiv:1512.03385), v2 (He et al. 2016, arXiv:1603.05027)."""

import functools
import inspect
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.models.activation import relu
from resnet_jax.models.conv import he_normal_fan_out


def identity_norm(*, name: str) -> Callable[[jax.Array], jax.Array]:
    """In the place of a norm that a network does not have: no parameters at all."""
    return lambda x: x


def norm_and_relu(x: jax.Array, norm: Callable, name: str) -> jax.Array:
    """Norm, then ReLU."""
    return relu(norm(name=name)(x))


def no_activation(x: jax.Array, norm: Callable, name: str) -> jax.Array:
    """The input, which is activated already."""
    return x


def stochastic_depth(branch: jax.Array, rate: float = 0.0, train: bool = False) -> jax.Array:
    """In training, each example's branch is dropped with probability `rate`, or else divided by 1 - `rate`.

    Huang et al. 2016 (arXiv:1603.09382), who drop a branch for the whole batch and multiply it by 1 - `rate` in
    evaluation; this is timm's DropPath. Random numbers come from the stream "dropout".
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)(branch)


class Block(nn.Module):
    """A branch, and a shortcut that it is added to.

    A kind of block defines `branch` and, where the sum is not its output, `activated_sum`. It cannot redefine
    `__call__` and `joined`, so that every block has addends, a switch for lesions and a depth.

    Attributes:
      width: number of channels, before `base_width` and `groups` change those inside of a bottleneck.
      stride: step of the convolution that shrinks the image.
      shortcut: one of the functions in `SHORTCUTS`.
      conv: a conv like those in `CONVS`, its dtype bound.
      norm: a norm like those in `NORMS`, its dtype and `train` bound, for the branch: an `announced` one.
      side_norm: the same for shortcut and gate, where it is not announced.
      gate: one of the functions in `GATES`, of the end of the branch, or None.
      drop: function of the branch: `stochastic_depth` with its rate.
      zero_init: start the branch at zero.
      groups: number of groups in the 3x3 convolution of a bottleneck (Xie et al. 2017, arXiv:1611.05431).
      base_width: channels of each group of a bottleneck where `width` is 64.
    """

    width: int
    stride: int
    shortcut: Callable
    conv: Callable
    norm: Callable
    side_norm: Callable
    gate: Callable | None = None
    drop: Callable = stochastic_depth
    zero_init: bool = False
    groups: int = 1
    base_width: int = 64

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        for method in ("__call__", "joined"):
            # A transformed class, like that of nn.remat, wraps ours.
            if inspect.unwrap(getattr(cls, method)) is not inspect.unwrap(getattr(Block, method)):
                raise TypeError(f"{cls.__name__}: expected a block to define `branch` only, found {method} of its own")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, H / stride, W / stride, features)."""
        chex.assert_rank(x, 4)
        return self.activated_sum(self.joined(*self.branch(x)))

    def branch(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(input of the shortcut, output of the branch)."""
        raise NotImplementedError

    def activated_sum(self, x: jax.Array) -> jax.Array:
        """The block's output, of the sum of shortcut and branch."""
        return x

    @property
    def inner_width(self) -> int:
        """Channels inside a bottleneck: `width`, in `groups` groups of `base_width` for each 64."""
        width = int(self.width * (self.base_width / 64)) * self.groups
        if not width:
            raise UserError(f"model.base_width: expected more than {self.base_width} where width is {self.width}")
        return width

    @property
    def shortcut_norm(self) -> Callable:
        """The norm after a projection on the shortcut."""
        return self.side_norm

    def joined(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        """The sum of shortcut and branch: all layers of a block that are called in here are off the main path.

        Both addends can be looked at in the collection "addends". The variable "branch_is_on", bool (), of the
        collection "lesions", if there is one, switches the branch off.
        """
        if self.gate is not None:
            branch = self.gate(branch, conv=self.conv, norm=self.side_norm)
        if self.has_variable("lesions", "branch_is_on"):
            branch = jnp.where(self.get_variable("lesions", "branch_is_on"), branch, 0)
        skip, branch = self.shortcut(x, branch, stride=self.stride, conv=self.conv, norm=self.shortcut_norm)
        branch = self.drop(branch)
        chex.assert_equal_shape([skip, branch])
        if not self.is_initializing():  # where every collection is kept
            self.sow("addends", "skip", skip)
            self.sow("addends", "branch", branch)
        return skip + branch

    def refuse_bottleneck_settings(self) -> None:
        """Raise `UserError` if `groups` or `base_width` is set: for blocks that are no bottlenecks."""
        if (self.groups, self.base_width) != (1, 64):
            raise UserError(
                "model.groups, model.base_width: expected 1 and 64 in a net of basic blocks, found "
                f"{self.groups} and {self.base_width}; try a net of bottlenecks, like resnet50"
            )


class V1Block(Block):
    """Base of the blocks of He et al. 2015: the sum is activated, and the branch ends with a norm."""

    @property
    def last_scale_init(self) -> Callable:
        """Initialiser of the scale of the branch's last norm."""
        return nn.initializers.zeros if self.zero_init else nn.initializers.ones

    def activated_sum(self, x: jax.Array) -> jax.Array:
        return relu(x)


class BasicBlock(V1Block):
    """Two 3x3 convolutions (Figure 5 left), `width` channels inside and out."""

    def branch(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        self.refuse_bottleneck_settings()
        y = self.conv(self.width, 3, self.stride, name="conv1")(x)
        y = relu(self.norm(name="bn1")(y))
        y = self.conv(self.width, 3, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale_init)(y)
        return x, y


class BottleneckBlock(V1Block):
    """1x1 to `inner_width` channels, 3x3, 1x1 to four times `width` (Figure 5 right).

    The stride is on the 3x3 convolution (`stride_on_first=False`, "v1.5": torchvision, fb.resnet.torch) or on the
    first 1x1 convolution (the paper and its Caffe release, "v1").
    """

    stride_on_first: bool = False

    def branch(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = (self.stride, 1) if self.stride_on_first else (1, self.stride)
        y = self.conv(self.inner_width, 1, first, name="conv1")(x)
        y = relu(self.norm(name="bn1")(y))
        y = self.conv(self.inner_width, 3, second, self.groups, name="conv2")(y)
        y = relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.width, 1, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=self.last_scale_init)(y)
        return x, y


BottleneckBlockV1 = functools.partial(BottleneckBlock, stride_on_first=True)


class PreActBlock(Block):
    """Base of the blocks of He et al. 2016 (Figure 4e): norm and ReLU stand before the convolutions.

    As in the released code, a block that changes the channels gives its shortcut the activated input and projects by
    the convolution alone; every other block gives it the raw input.

    Attributes:
      preactivation: `norm_and_relu`, or `no_activation` for the first block, whose input has been activated by the
        stem (appendix: "right after conv1 and before splitting into two paths").
    """

    preactivation: Callable = norm_and_relu

    @property
    def shortcut_norm(self) -> Callable:
        return identity_norm

    @property
    def last_kernel_init(self) -> Callable:
        """Initialiser of the last convolution, which ends the branch.

        With `zero_init` it is the kernel that starts at zero. A zero scale in the norm before it would start the
        branch at zero too, and leave it there: behind a ReLU of zeros neither scale, shift nor kernel has a gradient.
        """
        return nn.initializers.zeros if self.zero_init else he_normal_fan_out


class PreActBasicBlock(PreActBlock):
    """Two 3x3 convolutions, `width` channels inside and out."""

    def branch(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        self.refuse_bottleneck_settings()
        activated = self.preactivation(x, self.norm, "bn1")
        y = self.conv(self.width, 3, self.stride, name="conv1")(activated)
        y = relu(self.norm(name="bn2")(y))
        y = self.conv(self.width, 3, kernel_init=self.last_kernel_init, name="conv2")(y)
        return x if x.shape[-1] == y.shape[-1] else activated, y


class PreActBottleneckBlock(PreActBlock):
    """1x1 to `inner_width` channels, 3x3 with the stride, 1x1 to four times `width`."""

    def branch(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        activated = self.preactivation(x, self.norm, "bn1")
        y = self.conv(self.inner_width, 1, name="conv1")(activated)
        y = relu(self.norm(name="bn2")(y))
        y = self.conv(self.inner_width, 3, self.stride, self.groups, name="conv2")(y)
        y = relu(self.norm(name="bn3")(y))
        y = self.conv(4 * self.width, 1, kernel_init=self.last_kernel_init, name="conv3")(y)
        return x if x.shape[-1] == y.shape[-1] else activated, y
