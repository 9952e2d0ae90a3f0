"""Samplers: the examples of a batch, read, decoded and cropped on the host, as a function of their positions in it.

Every example is a pure function of (seed, step, position in the global batch), so a batch is the same for any number
of hosts, threads and processes, and a run starts at any step at once.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable

import jax
import numpy as np

from resnet_jax.data import crops
from resnet_jax.data.crops import Box
from resnet_jax.data.decode import CorruptImage, crop_and_resize, decode, decode_crop
from resnet_jax.data.order import epoch_order
from resnet_jax.errors import UserError

_ATTEMPTS = 100  # examples in a row that may be corrupt


class EpochOrder:
    """The ids of the endless stream of examples: entry p % n of the order of epoch p // n, for position p.

    Args:
      key: typed PRNG key of the order.
      num_examples: n.
      order: `(key, epoch) -> ids`; see `order.make_order`.
    """

    def __init__(self, key: jax.Array, num_examples: int, order: Callable | None = None):
        self._key_data = np.asarray(jax.random.key_data(key))
        self._num_examples = num_examples
        self._order = order or functools.partial(epoch_order, num_examples=num_examples)
        self._orders, self._lock = {}, threading.Lock()

    def __getstate__(self):
        return {"_key_data": self._key_data, "_num_examples": self._num_examples, "_order": self._order}

    def __setstate__(self, state):
        self.__dict__.update(state, _orders={}, _lock=threading.Lock())

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._num_examples)
        with self._lock:
            if epoch not in self._orders:
                self._orders.pop(epoch - 2, None)
                with jax.default_device(_host_device()):
                    key = jax.random.wrap_key_data(self._key_data)
                    self._orders[epoch] = np.asarray(self._order(key, epoch))
            return int(self._orders[epoch][place])


def _host_device() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


@dataclasses.dataclass(frozen=True)
class TrainSampler:
    """Training examples, by step and position in the global batch.

    Attributes:
      source: the training split; see `sources`.
      order: ids of the endless stream of its examples.
      seed: two uint32, for the crops.
      batch_size: global.
      repeats: how often an id stands in a batch, each time with another crop (Hoffer et al. 2020, arXiv:1901.09335).
      choose_box: (draws, height, width, size=) -> Box; see `crops`.
      image_shape: step -> (height, width, channels) of its images.
    """

    source: object
    order: EpochOrder
    seed: tuple[int, int]
    batch_size: int
    repeats: int
    choose_box: Callable[..., Box]
    image_shape: Callable[[int], tuple[int, int, int]]

    def empty(self, step: int, count: int, empty: Callable = np.empty) -> dict[str, np.ndarray]:
        """Arrays for `count` examples of a step.

        Args:
          step: number of the step.
          count: n.
          empty: (shape, dtype) -> array, for the images.

        Returns:
          uint8 `image` (n, height, width, channels); int32 (n,) `label`, `position` in the global batch, and `corrupt`:
          the id of an example that could not be decoded, whose place the one after it takes, or -1.
        """
        numbers = {name: np.empty(count, np.int32) for name in ("label", "position", "corrupt")}
        return {"image": empty((count, *self.image_shape(step)), np.uint8), **numbers}

    def fill(self, arrays: dict[str, np.ndarray], step: int, positions: np.ndarray) -> None:
        """Write the examples at these positions in the batch of a step, int (n,), to arrays from `empty`.

        Raises:
          UserError: too many examples in a row are corrupt.
        """
        arrays["position"][:] = positions
        for place, (position, draws) in enumerate(zip(positions.tolist(), self._draws(step, positions), strict=True)):
            label, corrupt = self._fill(arrays["image"][place], step, position, draws)
            arrays["label"][place], arrays["corrupt"][place] = label, corrupt

    def _draws(self, step, positions):
        # Philox counts: the numbers of a position are found without drawing those before it, and a generator for all
        # positions of a part is quicker than one for each.
        first, last = int(positions[0]), int(positions[-1])
        blocks = crops.DRAWS  # of the four numbers that Philox makes at a count
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=(first * blocks, 0, 0, step)))
        return rng.random((last + 1 - first, blocks, 4))[positions - first]

    def _fill(self, out, step, position, draws):
        distinct = self.batch_size // self.repeats  # copies lie apart, so that mixing finds other neighbours
        wanted = self.order[step * distinct + position % distinct]

        def choose_box(height, width):
            return self.choose_box(draws, height, width, size=len(out))

        attempts = min(len(self.source), _ATTEMPTS)
        for attempt in range(attempts):
            record = self.source.read((wanted + attempt) % len(self.source))
            try:
                if isinstance(record.image, bytes):
                    decode_crop(record.image, choose_box, out)
                else:
                    crop_and_resize(record.image, choose_box(*record.image.shape[:2]), out)
            except CorruptImage:
                continue
            return record.label, wanted if attempt else -1
        first = self.source.name(wanted)
        raise UserError(f"data.name: none of {attempts} examples can be decoded, from {first} on; are the data there?")


@dataclasses.dataclass(frozen=True)
class EvalSampler:
    """Examples of a split for evaluation, in their stored order.

    Attributes:
      source: the split; see `sources`.
      view: uint8 (h, w, c) -> uint8 model input of `shape`.
      shape: (height, width, channels); images that cannot be decoded, and padding, are zeros.
      batch_size: global.
    """

    source: object
    view: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, int, int]
    batch_size: int

    def empty(self, batch: int, count: int, empty: Callable = np.empty) -> dict[str, np.ndarray]:
        """Arrays for `count` examples.

        Args:
          batch: number of the batch.
          count: n.
          empty: (shape, dtype) -> array, for the images.

        Returns:
          uint8 `image` (n, h, w, c); int32 `label` (n,); bool `mask` (n,), False for padding; and int32 `corrupt` (n,):
          the id of an example that could not be decoded, or -1.
        """
        return {
            "image": empty((count, *self.shape), np.uint8),
            "label": np.empty(count, np.int32),
            "mask": np.empty(count, bool),
            "corrupt": np.empty(count, np.int32),
        }

    def fill(self, arrays: dict[str, np.ndarray], batch: int, positions: np.ndarray) -> None:
        """Write the examples at these positions in a batch, int (n,), to arrays from `empty`."""
        for place, index in enumerate((batch * self.batch_size + positions).tolist()):
            image, label, corrupt, inside = None, 0, -1, index < len(self.source)
            if inside:
                image, label = read_image(self.source, index)
                corrupt = index if image is None else -1
            arrays["image"][place] = 0 if image is None else self.view(image)
            arrays["label"][place] = label
            arrays["mask"][place], arrays["corrupt"][place] = inside, corrupt


def read_image(source, index: int) -> tuple[np.ndarray | None, int | np.ndarray]:
    """(pixels of an example, uint8 (h, w, c), or None if it is corrupt; its label or labels)."""
    record = source.read(index)
    try:
        return decode(record.image) if isinstance(record.image, bytes) else record.image, record.label
    except CorruptImage:
        return None, record.label
