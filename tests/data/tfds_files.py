"""Tiny data sets in the formats of the real ones, for the tests that prepare data."""

import gzip
import io
import pathlib
import tarfile

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data import DATASETS

SIZES = {"train": 30, "test": 20}


def random_examples(shape, num_classes, seed=0, sizes=SIZES):
    """{split: (images, labels)}, with every image different from every other."""
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (n, *shape), np.uint8), rng.integers(0, num_classes, n).astype(np.uint8))
        for split, n in sizes.items()
    }


def write_idx(folder, seed=0):
    """Write the four files of MNIST and its kin; return their examples."""
    examples = random_examples((28, 28, 1), 10, seed)
    folder.mkdir()
    for prefix, split in (("train", "train"), ("t10k", "test")):
        images, labels = examples[split]
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    return examples


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def cifar_records(images, *label_columns):
    """CIFAR's binary format: the label bytes, then the red, the green and the blue plane."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*(column[:, None] for column in label_columns), planes], axis=1).tobytes()


def write_cifar10(folder, sizes=SIZES):
    examples = random_examples((32, 32, 3), 10, sizes=sizes)
    (train_images, train_labels), test = examples["train"], examples["test"]
    files = {"batches.meta.txt": "\n".join(DATASETS["cifar10"].class_names).encode()}
    for i, rows in enumerate(np.array_split(np.arange(len(train_images)), 5), start=1):
        files[f"data_batch_{i}.bin"] = cifar_records(train_images[rows], train_labels[rows])
    files["test_batch.bin"] = cifar_records(*test)
    folder.mkdir()
    write_tar(folder / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{k}": v for k, v in files.items()})
    return examples


def write_cifar100(folder):
    examples = random_examples((32, 32, 3), 100)
    files = {
        "fine_label_names.txt": "\n".join(DATASETS["cifar100"].class_names).encode(),
        "coarse_label_names.txt": "\n".join(f"group_{i}" for i in range(20)).encode(),
    }
    for split, (images, labels) in examples.items():
        files[f"{split}.bin"] = cifar_records(images, labels % 20, labels)
    folder.mkdir()
    write_tar(folder / "cifar-100-binary.tar.gz", {f"cifar-100-binary/{k}": v for k, v in files.items()})
    return examples


def write_svhn(folder):
    examples = random_examples((32, 32, 3), 10)
    folder.mkdir()
    for split, (images, labels) in {**examples, "extra": examples["test"]}.items():
        in_file = {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]}
        scipy.io.savemat(folder / f"{split}_32x32.mat", in_file)
    return examples


WRITERS = {
    "mnist": write_idx,
    "kmnist": write_idx,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn_cropped": write_svhn,
}


def by_image(images, labels):
    """{image bytes: label}. TFDS shuffles what it writes, so examples are known by their image."""
    return {np.asarray(image).tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def assert_reads_back(name, data_dir, examples):
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    for split, written in examples.items():
        source = builder.as_data_source(split)
        assert len(source) == SIZES[split]
        assert source[0]["image"].shape == DATASETS[name].image_shape
        assert by_image(*zip(*((e["image"], e["label"]) for e in source), strict=True)) == by_image(*written)


def contents(folder):
    """{path: (bytes, time of the last change)} of all files under the folder."""
    files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def jpeg(grey, size=40):
    with io.BytesIO() as file:
        Image.fromarray(np.full((size, size, 3), grey, np.uint8)).save(file, "JPEG")
        return file.getvalue()


def tar_bytes(files):
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return buffer.getvalue()


def write_imagenet(folder):
    """The two files that are fetched by hand, with eight and four images of two classes."""
    folder.mkdir()
    classes = {
        f"{name}.tar": tar_bytes({f"{name}_{i}.JPEG": jpeg(100 * label + 10 * i) for i in range(4)})
        for label, name in enumerate(("n01440764", "n01443537"))
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(classes))
    images = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(5 * i) for i in range(1, 5)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(images))


def greys_and_labels(source):
    records = [source.read(i) for i in range(len(source))]
    return sorted((int(np.asarray(Image.open(io.BytesIO(s.image)))[0, 0, 0]), int(s.label)) for s in records)


def store(name, data_dir, split, label, records, class_names=None, size=40):
    """A data set with the name of an official one, made from (grey, label or labels) pairs."""
    names = class_names or tfds.builder("imagenet2012", data_dir=data_dir).info.features["label"].names
    classes = tfds.features.ClassLabel(names=names)
    features = {"image": tfds.features.Image(encoding_format="jpeg"), "file_name": tfds.features.Text()}
    features[label] = tfds.features.Sequence(classes) if label == "real_label" else classes
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    tfds.dataset_builders.store_as_tfds_dataset(
        name=builder.name,
        config=builder.builder_config.name if builder.builder_config else None,
        version=str(builder.version),
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: [
                (i, {"image": np.full((size, size, 3), grey, np.uint8), label: right, "file_name": f"{i}.jpg"})
                for i, (grey, right) in enumerate(records)
            ]
        },
        data_dir=data_dir,
        file_format="array_record",
        disable_shuffling=True,
    )
