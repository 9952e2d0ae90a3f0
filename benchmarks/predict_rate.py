"""Images per second of `predict` on a folder of JPEGs, against the bare forward pass of the same net.

    python -m benchmarks.predict_rate
    python -m benchmarks.predict_rate --model resnet18 --images 320 --rounds 3

Predicting finds, reads, decodes, resizes and classifies 500x375 JPEGs of about 55 KB, 224x224 for the net; the bare
forward pass computes a batch that is there already as often. The weights are random. Both are timed after their first
batch, which is compiled, and take turns; prints one JSON line with the medians, and the min and max of the ratios.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.photos import write_folder
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.data.splits import PHOTO_MEAN, PHOTO_STD
from resnet_jax.environment import use_compilation_cache
from resnet_jax.evaluation.classify import classify
from resnet_jax.evaluation.images import find_images, read_views
from resnet_jax.models import create_model

_SIZE = 224


def predict_rate(model, variables, preprocessing: Preprocessing, folder: pathlib.Path, batch_size: int) -> float:
    """Images per second from the first batch on."""
    views = read_views(find_images([str(folder)]), preprocessing, ahead=2 * batch_size)
    count = 0
    for count, _ in enumerate(classify(model, variables, preprocessing, views, batch_size=batch_size, top=5), start=1):
        if count == batch_size:
            start = time.perf_counter()
    return (count - batch_size) / (time.perf_counter() - start)


def forward_rate(model, variables, images: int, batch_size: int) -> float:
    """Images per second of the forward pass alone."""
    forward = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(batch_size, _SIZE, _SIZE, 3)), jnp.float32)
    jax.block_until_ready(forward(variables, batch))
    calls = images // batch_size - 1
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(forward(variables, batch))
    return calls * batch_size / (time.perf_counter() - start)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    use_compilation_cache()
    model = create_model(args.model, num_classes=1000)
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, _SIZE, _SIZE, 3)), train=False))()
    preprocessing = Preprocessing(_SIZE, 0.875, "bilinear", "RGB", PHOTO_MEAN, PHOTO_STD)
    forward, predict = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_folder(pathlib.Path(folder), {"test": args.images})
        for _ in range(args.rounds):
            forward.append(forward_rate(model, variables, args.images, args.batch))
            predict.append(predict_rate(model, variables, preprocessing, pathlib.Path(folder), args.batch))
    ratios = [ours / bare for ours, bare in zip(predict, forward, strict=True)]
    print(
        json.dumps({
            "model": args.model,
            "images": args.images,
            "batch": args.batch,
            "device": jax.devices()[0].device_kind,
            "forward_images_per_second": round(statistics.median(forward), 1),
            "predict_images_per_second": round(statistics.median(predict), 1),
            "predict_to_forward": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
