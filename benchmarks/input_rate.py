"""Images per second of input pipelines for ImageNet training, side by side: ours, and those of others if installed.

    python -m benchmarks.input_rate                     # alternating, each in a process of its own; medians
    python -m benchmarks.input_rate --workers 1 2 4     # ours alone: so many threads, and so many processes
    python -m benchmarks.input_rate --memory            # ours alone: host memory over 5,000 batches
    python -m benchmarks.input_rate --index 1281167     # ours alone: memory of the index of so many files

All read the same 500x375 JPEGs of about 55 KB and give shuffled batches of 128 random crops of 224x224 pixels, on the
host:
  ours: the loader `stream` with its default workers (`threads:N` and `processes:N`: with others), uint8;
  flax: the tf.data pipeline of the Flax ImageNet example (bicubic, normalised float32);
  tf.data: the same, tuned: uint8, bilinear, faster decoding, order not kept;
  torchvision: its transforms on Pillow images in a DataLoader with a process for each CPU, uint8.
Others need `pip install tensorflow-cpu` and `pip install torch torchvision`.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.harness import benchmark, command_parser, compare, print_line
from benchmarks.photos import write_folder

_BATCH, _SIZE = 128, 224
_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _our_sampler(folder):
    import jax

    from resnet_jax.data import sampling
    from resnet_jax.data.crops import random_resized_box
    from resnet_jax.data.splits import load_splits

    source = load_splits("folder", 0, str(folder))["train"]
    order = sampling.EpochOrder(jax.random.key(0), len(source))
    image_shape = functools.partial(_constant, (_SIZE, _SIZE, 3))
    return sampling.TrainSampler(source, order, (0, 0), _BATCH, 1, random_resized_box, image_shape)


def _constant(value, _):
    return value


def _ours(folder, workers="threads", num_workers=None):
    import numpy as np

    from resnet_jax.data.reader import batches

    yield from batches(_our_sampler(folder), 0, 10**9, np.arange(_BATCH), workers, num_workers)


def _files(folder):
    return sorted(map(str, (folder / "train").glob("*/*.jpg")))


def _tf_crop_window(tf, encoded):
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(encoded),
        bounding_boxes=tf.zeros([1, 0, 4]),
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def _flax(folder):
    import tensorflow as tf

    mean = tf.constant([0.485 * 255, 0.456 * 255, 0.406 * 255])
    std = tf.constant([0.229 * 255, 0.224 * 255, 0.225 * 255])

    def load(path):
        encoded = tf.io.read_file(path)
        image = tf.image.decode_and_crop_jpeg(encoded, _tf_crop_window(tf, encoded), channels=3)
        image = tf.image.resize(image, [_SIZE, _SIZE], tf.image.ResizeMethod.BICUBIC)
        return (tf.image.random_flip_left_right(image) - mean) / std

    dataset = tf.data.Dataset.from_tensor_slices(_files(folder)).repeat().shuffle(16 * _BATCH, seed=0)
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(_BATCH, drop_remainder=True).prefetch(10)
    yield from dataset


def _tf_data(folder):
    import tensorflow as tf

    def load(path):
        encoded = tf.io.read_file(path)
        window = _tf_crop_window(tf, encoded)
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_FAST")
        image = tf.image.resize(image, [_SIZE, _SIZE], tf.image.ResizeMethod.BILINEAR)
        return tf.image.random_flip_left_right(tf.cast(image + 0.5, tf.uint8))

    files = _files(folder)
    options = tf.data.Options()
    options.deterministic = False
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(len(files), seed=0)
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(_BATCH, drop_remainder=True)
    yield from dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _torchvision(folder):
    import torch

    from resnet_jax.weights.references import import_torchvision

    import_torchvision()
    from torchvision import datasets, transforms

    transform = transforms.Compose([
        transforms.RandomResizedCrop(_SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ])  # fmt: skip
    dataset = datasets.ImageFolder(folder / "train", transform)
    while True:
        loader = torch.utils.data.DataLoader(dataset, _BATCH, shuffle=True, num_workers=_CPUS, drop_last=True)
        yield from (images for images, _ in loader)


PIPELINES = {"ours": (_ours, "jax"), "flax": (_flax, "tensorflow"), "tf.data": (_tf_data, "tensorflow")}
PIPELINES["torchvision"] = (_torchvision, "torchvision")


def _open_pipeline(name, folder):
    if ":" not in name:
        return PIPELINES[name][0](folder)
    workers, num_workers = name.split(":")
    return _ours(folder, workers, int(num_workers))


def rate(name: str, folder: pathlib.Path, seconds: float) -> float:
    """Images per second of a pipeline, after a quarter of the time to get up to speed."""
    batches = _open_pipeline(name, folder)
    start = time.perf_counter()
    while time.perf_counter() < start + seconds / 4:
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        next(batches)
        count += _BATCH
    return count / (time.perf_counter() - start)


def batch_seconds(name: str, folder: pathlib.Path, seconds: float) -> float:
    """Seconds for a batch of a pipeline, in a process of its own that measures for so many seconds."""
    command = [sys.executable, "-m", "benchmarks.input_rate", "--only", name, "--folder", str(folder)]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [*command, "--seconds", str(seconds)], env=quiet, stdout=subprocess.PIPE, text=True, check=True
    )
    return _BATCH / float(process.stdout.splitlines()[-1])


def _resident_megabytes() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _stream_loader(folder, batch_size):
    import jax
    import numpy as np

    from resnet_jax.data.crops import center_view, random_resized_box
    from resnet_jax.data.splits import load_splits
    from resnet_jax.data.stream import StreamLoader

    shape = (_SIZE, _SIZE, 3)
    return StreamLoader(
        load_splits("folder", 0, str(folder)),
        jax.random.key(0),
        batch_size=batch_size,
        eval_batch_size=batch_size,
        train_view=random_resized_box,
        train_shape=functools.partial(_constant, shape),
        eval_view=functools.partial(center_view, size=_SIZE, crop_fraction=0.875, interpolation="bilinear"),
        eval_shape=shape,
        repeats=1,
        workers="threads",
        num_workers=None,
        shards=1,
        rows=np.arange,
        distribute=jax.device_put,
    )


def memory(folder: pathlib.Path, num_batches: int, batch_size: int = 32) -> None:
    """Print the resident memory of ours, while it goes through many batches."""
    loader, start = _stream_loader(folder, batch_size), time.perf_counter()
    for step in range(num_batches + 1):
        loader.inputs(step)
        if step in (num_batches // 20, num_batches // 4, num_batches // 2, num_batches):
            megabytes, rate = _resident_megabytes(), step * batch_size / (time.perf_counter() - start)
            measured = {"megabytes": round(megabytes, 1), "images_per_second": round(rate)}
            print_line({"case": {"measured": "memory"}, "candidate": f"ours after {step} batches", **measured})


def index(folder: pathlib.Path, count: int) -> None:
    """Print seconds to index a folder of `count` images and to open it again, and the memory of its sources."""
    for split, images in (("train", count), ("test", 1000)):
        for number in range(images):
            path = folder / split / f"n{number % 1000:08d}" / f"n{number % 1000:08d}_{number}.JPEG"
            if number < 1000:
                path.parent.mkdir(parents=True)
            path.touch()  # the index does not look inside
    for what in ("index", "open"):
        command = [sys.executable, "-m", "benchmarks.input_rate", "--only", "index", "--folder", str(folder)]
        measured = json.loads(subprocess.check_output(command, text=True))
        print_line({"case": {"measured": "index", "images": count}, "candidate": what, **measured})


def _open_index(folder: pathlib.Path) -> None:
    from resnet_jax.data.splits import load_splits

    before, start = _resident_megabytes(), time.perf_counter()
    splits = load_splits("folder", 0, str(folder))
    splits["train"].name(len(splits["train"]) - 1)
    seconds, grown = time.perf_counter() - start, _resident_megabytes() - before
    print(json.dumps({"seconds": round(seconds, 2), "megabytes": round(grown, 1)}))


def main() -> None:
    """Parse the command line and measure."""
    parser = command_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each pipeline in each round")
    parser.add_argument("--workers", type=int, nargs="+", metavar="N")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--index", type=int, default=0, metavar="N")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one measurement, for the calls of itself
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "index":
        _open_index(args.folder)
    elif args.only:
        print(rate(args.only, args.folder, args.seconds))
    else:
        with benchmark(), tempfile.TemporaryDirectory() as scratch:
            measure(args, pathlib.Path(scratch))


def measure(args: argparse.Namespace, folder: pathlib.Path) -> None:
    """Measure as the options say, with images in a folder."""
    if args.index:
        index(folder, args.index)
        return
    write_folder(folder, {"train": 1000, "test": 10})
    if args.memory:
        memory(folder, num_batches=5000)
        return
    kinds = [f"{kind}:{count}" for count in args.workers or () for kind in ("threads", "processes")]
    installed = [name for name, (_, package) in PIPELINES.items() if importlib.util.find_spec(package)]
    names = ["ours", *kinds] if kinds else installed
    compare(
        {name: functools.partial(batch_seconds, name, folder, args.seconds) for name in names},
        args.rounds,
        case={"size": _SIZE, "batch": _BATCH},
        images=_BATCH,
    )


if __name__ == "__main__":
    main()
