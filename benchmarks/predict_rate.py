"""Images per second of `predict` on a folder of JPEGs, against the bare forward pass of the same net.

    python -m benchmarks.predict_rate
    python -m benchmarks.predict_rate --model resnet18 --images 320 --rounds 3

Predicting finds, reads, decodes, resizes and classifies 500x375 JPEGs of about 55 KB, 224x224 for the net; the bare
forward pass computes a batch that is there already as often. The weights are random. Both are timed after their first
batch, which is compiled.
"""

import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import benchmark, command_parser, compare
from benchmarks.photos import write_folder
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.data.splits import PHOTO_MEAN, PHOTO_STD
from resnet_jax.environment import use_compilation_cache
from resnet_jax.evaluation.classify import classify
from resnet_jax.evaluation.images import find_images, read_views
from resnet_jax.models import create_model

_SIZE = 224


def predict_seconds(model, variables, preprocessing: Preprocessing, folder: pathlib.Path, batch_size: int) -> float:
    """Seconds from the first batch on."""
    views = read_views(find_images([str(folder)]), preprocessing, ahead=2 * batch_size)
    classified = classify(model, variables, preprocessing, views, batch_size=batch_size, top=5)
    for count, _ in enumerate(classified, start=1):
        if count == batch_size:
            start = time.perf_counter()
    return time.perf_counter() - start


def forward_seconds(forward, variables, batch: jax.Array, images: int) -> float:
    """Seconds of the forward pass alone, for all batches but one."""
    start = time.perf_counter()
    for _ in range(images // len(batch) - 1):
        jax.block_until_ready(forward(variables, batch))
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line and measure."""
    parser = command_parser(__doc__, rounds=3)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=992, help="a multiple of the batch")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    if args.images % args.batch or args.images < 2 * args.batch:
        parser.error(f"--images: expected a multiple of the batch ({args.batch}), min 2 batches, found {args.images}")
    with benchmark(), tempfile.TemporaryDirectory() as name:
        use_compilation_cache()
        folder = pathlib.Path(name)
        write_folder(folder, {"test": args.images})
        model = create_model(args.model, num_classes=1000)
        variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, _SIZE, _SIZE, 3)), train=False))()
        preprocessing = Preprocessing(_SIZE, 0.875, "bilinear", "RGB", PHOTO_MEAN, PHOTO_STD)
        forward = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
        batch = jnp.asarray(np.random.default_rng(0).normal(size=(args.batch, _SIZE, _SIZE, 3)), jnp.float32)
        compare(
            {
                "predict": lambda: predict_seconds(model, variables, preprocessing, folder, args.batch),
                "forward pass": lambda: forward_seconds(forward, variables, batch, args.images),
            },
            args.rounds,
            case={"model": args.model, "size": _SIZE, "batch": args.batch},
            images=args.images - args.batch,
        )


if __name__ == "__main__":
    main()
