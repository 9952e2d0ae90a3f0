"""A folder of real JPEGs by class, cut from the photographs that come with scikit-learn and scikit-image.

    python -m benchmarks.photos DIR --train 600 --test 100

Each class is a photograph; its images are different cuts of it, 500x375 pixels, of about 55 KB.
"""

import argparse
import pathlib

import cv2
import numpy as np
import simplejpeg
import skimage.data
from sklearn.datasets import load_sample_images

_SCIKIT_IMAGE = "astronaut.png chelsea.png coffee.png motorcycle_left.png hubble_deep_field.jpg retina.jpg rocket.jpg"


def photographs() -> dict[str, np.ndarray]:
    """By name, uint8 (h, w, 3)."""
    folder = pathlib.Path(skimage.data.__file__).parent
    found = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    return found | {
        pathlib.Path(name).stem: np.ascontiguousarray(cv2.imread(str(folder / name))[..., ::-1])
        for name in _SCIKIT_IMAGE.split()
    }


def write_folder(folder: pathlib.Path, counts: dict[str, int], width: int = 500, size: int = 55_000) -> None:
    """Write `folder/SPLIT/CLASS/NUMBER.jpg`: `counts` images of each split, 4:3, of about `size` bytes."""
    rng, classes = np.random.default_rng(0), list(photographs().items())
    for split, count in counts.items():
        for index in range(count):
            name, photo = classes[index % len(classes)]
            path = folder / split / name / f"{index:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_encode(_cut(rng, photo, width), size))


def _cut(rng, photo, width):
    longest = min(photo.shape[1], photo.shape[0] * 4 // 3)
    w = int(longest * rng.uniform(0.6, 1))
    h = w * 3 // 4
    top, left = rng.integers((photo.shape[0] - h + 1, photo.shape[1] - w + 1))
    shape = (width, width * 3 // 4)
    cut = photo[top : top + h, left : left + w]
    return cv2.resize(cut, shape, interpolation=cv2.INTER_AREA if w > width else cv2.INTER_CUBIC)


def _encode(image, size):
    low, high = 20, 98
    while high - low > 1:
        quality = (low + high) // 2
        encoded = simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420")
        low, high = (quality, high) if len(encoded) <= size else (low, quality)
    return encoded


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--test", type=int, default=100)
    args = parser.parse_args()
    write_folder(args.folder, {"train": args.train, "test": args.test})
    print(f"{args.folder}: {args.train} JPEGs in train/, {args.test} in test/")


if __name__ == "__main__":
    main()
