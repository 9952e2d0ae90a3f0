"""Dataset metadata: classes, shapes, sizes and pixel statistics."""

import dataclasses

_DIGITS = tuple("0123456789")

_CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()
)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Metadata of one image classification data set.

    Attributes:
      class_names: one name per label, in label order.
      image_shape: (height, width, channels) of a stored uint8 image; None if images are stored in many sizes.
      splits: number of examples by split; in `DATASETS` those of the official `train` and `test`.
      mean, std: per-channel statistics of the official training images, on the scale 0..1.
      tfds_name: name of the builder in TensorFlow Datasets; None for data that come from elsewhere.
      origins: where a split comes from, in words, where that is not obvious.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    splits: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tfds_name: str | None
    origins: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    @property
    def fixed_size(self) -> bool:
        """True if all images are stored with the same shape."""
        return self.image_shape is not None


DATASETS = {
    # scikit-learn's 1,797 digits (UCI optdigits test set), 8x8, 16 grey levels; the split is ours (see splits.py).
    "digits": DatasetInfo(_DIGITS, (8, 8, 1), {"train": 1437, "test": 360}, (0.3049,), (0.3757,), None),
    "mnist": DatasetInfo(_DIGITS, (28, 28, 1), {"train": 60000, "test": 10000}, (0.1307,), (0.3081,), "mnist"),
    "fashion_mnist": DatasetInfo(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        (28, 28, 1),
        {"train": 60000, "test": 10000},
        (0.2860,),
        (0.3530,),
        "fashion_mnist",
    ),
    "kmnist": DatasetInfo(
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        (28, 28, 1),
        {"train": 60000, "test": 10000},
        (0.1918,),
        (0.3483,),
        "kmnist",
    ),
    "cifar10": DatasetInfo(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        (32, 32, 3),
        {"train": 50000, "test": 10000},
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        "cifar10",
    ),
    "cifar100": DatasetInfo(
        _CIFAR100,
        (32, 32, 3),
        {"train": 50000, "test": 10000},
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "cifar100",
    ),
    "svhn_cropped": DatasetInfo(
        _DIGITS,
        (32, 32, 3),
        {"train": 73257, "test": 26032},
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        "svhn_cropped",
    ),
}
