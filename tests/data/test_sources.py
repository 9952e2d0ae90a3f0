"""Sources: folders, tar shards, their indexes, and synthetic images."""

import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import simplejpeg

from resnet_jax.data import index
from resnet_jax.data.sources import SyntheticSource
from resnet_jax.data.splits import load_splits, open_sources
from resnet_jax.data.tfds import expand_corruptions
from resnet_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*left out")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    open_sources.cache_clear()  # a data set is opened once in a process
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def jpeg(grey):
    return simplejpeg.encode_jpeg(np.full((8, 8, 3), grey, np.uint8))


def write_folder(root, splits):
    """`splits`: {split: {path below it: grey}}."""
    for split, files in splits.items():
        for name, grey in files.items():
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(grey))
    return root


TWO_CLASSES = {
    "train": {
        "b/1.jpg": 10,
        "a/2.JPEG": 20,
        "a/1.png": 30,
        "a/z/0.jpg": 40,
        "a/y/0.jpg": 35,
        "b/notes.txt": 0,
        ".git/x.jpg": 0,
    },
    "val": {"b/1.jpg": 50},
}


def greys(source):
    return [int(simplejpeg.decode_jpeg(source.read(i).image)[0, 0, 0]) for i in range(len(source))]


def test_a_folder_is_read_by_class_and_path(tmp_path):
    info, splits = open_sources("folder", str(write_folder(tmp_path, TWO_CLASSES)))
    assert info.class_names == ("a", "b") and info.splits == {"train": 5, "test": 1}
    assert [os.path.basename(splits["train"].name(i)) for i in range(3)] == ["1.png", "2.JPEG", "0.jpg"]
    assert splits["train"].labels.tolist() == [0, 0, 0, 0, 1] and greys(splits["train"]) == [30, 20, 35, 40, 10]
    assert splits["test"].labels.tolist() == [1] and splits["test"].read(0).label == 1


def test_the_index_is_cached_and_built_again_when_a_folder_changes(tmp_path, monkeypatch):
    root = write_folder(tmp_path, TWO_CLASSES)
    open_sources("folder", str(root))
    walked = []
    walk = index.walk
    monkeypatch.setattr(index, "walk", lambda *a: walked.append(a) or walk(*a))

    def reopened():
        walked.clear()
        open_sources.cache_clear()
        _, splits = open_sources("folder", str(root))
        return bool(walked), greys(splits["train"])

    assert reopened() == (False, [30, 20, 35, 40, 10])
    write_folder(root, {"train": {"a/z/1.jpg": 60}})
    assert reopened() == (True, [30, 20, 35, 40, 60, 10])
    write_folder(root, {"train": {"c/0.jpg": 70}})
    assert reopened() == (True, [30, 20, 35, 40, 60, 10, 70])
    shutil.rmtree(root / "train" / "a")
    assert reopened() == (True, [10, 70])
    (root / ".resnet_jax_train.npz").write_bytes(b"corrupt")
    assert reopened() == (True, [10, 70])
    assert reopened() == (False, [10, 70])


def test_a_copy_of_a_folder_does_not_use_the_index_of_the_original(tmp_path):
    root = write_folder(tmp_path / "original", TWO_CLASSES)
    open_sources("folder", str(root))
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "train" / "a" / "2.JPEG").unlink()
    assert (copy / ".resnet_jax_train.npz").exists()
    assert greys(open_sources("folder", str(copy))[1]["train"]) == [30, 35, 40, 10]


def test_a_class_without_images_is_refused(tmp_path):
    root = write_folder(tmp_path, TWO_CLASSES)
    (root / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="found none in .*empty"):
        open_sources("folder", str(root))


def test_where_the_folder_cannot_be_written_the_index_is_in_the_users_cache(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data", TWO_CLASSES)
    savez = np.savez

    def refuse(file, **arrays):
        if str(file).startswith(str(root)):
            raise PermissionError("read-only")
        savez(file, **arrays)

    monkeypatch.setattr(index.np, "savez", refuse)
    open_sources("folder", str(root))
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2 and not list(root.glob(".*.npz"))
    monkeypatch.setattr(index, "walk", lambda *a: pytest.fail("walked again"))
    open_sources.cache_clear()
    assert greys(open_sources("folder", str(root))[1]["train"]) == [30, 20, 35, 40, 10]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": {"a/1.jpg": 1}}, "expected folders train and test"),
        ({"train": {"a/1.jpg": 1}, "test": {"z/1.jpg": 1}}, "has a class 'z', which the training split has not"),
        ({"train": {"a/1.txt": 1}, "test": {"a/1.jpg": 1}}, "found no images"),
    ],
)
def test_a_folder_of_another_layout_is_refused(tmp_path, splits, message):
    with pytest.raises(UserError, match=message):
        open_sources("folder", str(write_folder(tmp_path, splits)))


def test_the_index_of_a_million_names_takes_few_bytes_for_each():
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(20_000)]
    made = index._make_index(None, ["a"], [0] * len(names), names)
    assert made.name(0) == names[0] and made.name(12_345) == names[12_345] and made.name(19_999) == names[-1]
    assert sum(array.nbytes for array in made) / len(names) * 1.28e6 < 100e6


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_webdataset_shards_are_read_in_place(tmp_path):
    for shard in range(2):
        members = []
        for i in range(3):
            key = f"{shard}{i}"
            members += [(f"{key}.jpg", jpeg(10 * shard + i)), (f"{key}.cls", str((shard + i) % 3).encode())]
            members += [(f"{key}.json", b"{}")]
        write_tar(tmp_path / f"train-00000{shard}.tar", members)
    write_tar(tmp_path / "val-000000.tar", [("x.cls", b"2"), ("x.jpg", jpeg(99))])
    info, splits = open_sources("tar", str(tmp_path))
    assert info.class_names == ("0", "1", "2") and info.splits == {"train": 6, "test": 1}
    assert greys(splits["train"]) == [0, 1, 2, 10, 11, 12]
    assert splits["train"].labels.tolist() == [0, 1, 2, 1, 2, 0]
    assert splits["test"].read(0).label == 2
    copy = pickle.loads(pickle.dumps(splits["train"]))  # as a worker process gets it
    assert greys(copy) == greys(splits["train"])
    (tmp_path / "train-000001.tar").unlink()
    assert [len(splits["train"].read(i).image) > 0 for i in range(6)] == [True] * 3 + [False] * 3


def test_shards_of_a_folder_tree_have_the_classes_of_its_folders(tmp_path):
    write_tar(tmp_path / "train.tar", [("train/b/1.jpg", jpeg(1)), ("train/a/1.jpg", jpeg(2))])
    write_tar(tmp_path / "test.tar", [("test/b/9.jpg", jpeg(3))])
    info, splits = open_sources("tar", str(tmp_path))
    assert info.class_names == ("a", "b") and splits["train"].labels.tolist() == [1, 0]
    assert splits["test"].labels.tolist() == [1]
    assert splits["train"].name(1).endswith("train.tar: train/a/1.jpg")


@pytest.mark.parametrize(("wanted", "validation"), [(True, [2]), (False, None)])
def test_validation_shards_beside_test_shards_are_the_validation_split(wanted, validation, tmp_path):
    for split, label in (("train", 0), ("valid", 2), ("test", 1)):
        members = [(f"{split}/{name}/1.jpg", jpeg(index)) for index, name in enumerate("abc")]
        write_tar(tmp_path / f"{split}.tar", members if split == "train" else members[label : label + 1])
    _, splits = open_sources("tar", str(tmp_path), use_validation_split=wanted)
    assert splits["test"].labels.tolist() == [1]
    assert (splits["validation"].labels.tolist() if "validation" in splits else None) == validation


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.jpg", jpeg(0))], "has no label"),
        ([("1.jpg", jpeg(0)), ("1.cls", b"0"), ("2.jpg", jpeg(0))], "2.jpg .* has no label"),
        ([("1.jpg", jpeg(0)), ("1.cls", b"cat")], "cannot be read"),
        ([("1.txt", b"")], "found no images"),
        (None, "cannot be read as an uncompressed tar file"),
    ],
)
def test_shards_of_another_layout_are_refused(tmp_path, members, message):
    for split in ("train", "test"):
        path = tmp_path / f"{split}.tar"
        path.write_bytes(b"no tar at all") if members is None else write_tar(path, members)
    with pytest.raises(UserError, match=message):
        open_sources("tar", str(tmp_path))


def test_synthetic_images_are_a_function_of_their_number_and_say_so():
    source, again = SyntheticSource(1000, 10, seed=0), SyntheticSource(1000, 10, seed=0)
    for number in (0, 7, 999):
        np.testing.assert_array_equal(source.read(number).image, again.read(number).image)
        assert source.read(number).label == number % 10
    assert len({source.read(number).image.tobytes() for number in range(50)}) == 50
    assert "synthetic" in source.name(3) and all("synthetic" in name for name in source.class_names)


def test_classes_of_synthetic_images_can_be_told_apart():
    source, other = SyntheticSource(200, 5, seed=0), SyntheticSource(50, 5, seed=1)
    pictures = np.stack([source.read(i).image[8::16, 8::16] for i in range(200)]).astype(float)
    means = np.stack([pictures[source.labels == label].mean(axis=0) for label in range(5)])
    found = [np.abs(means - other.read(i).image[8::16, 8::16]).mean(axis=(1, 2, 3)).argmin() for i in range(50)]
    np.testing.assert_array_equal(found, other.labels)


def test_held_out_examples_are_no_training_examples(tmp_path):
    files = {f"{name}/{i:02d}.jpg": i for name in "ab" for i in range(20)}
    splits = load_splits("folder", 10, str(write_folder(tmp_path, {"train": files, "test": {"a/0.jpg": 0}})))
    names = [{source.name(i) for i in range(len(source))} for source in (splits["train"], splits["validation"])]
    assert len(names[0]) == 30 and len(names[1]) == 10 and not names[0] & names[1]
    assert np.bincount(splits["validation"].labels).tolist() == [5, 5]  # stratified
    assert greys(splits["validation"]) == [int(splits["validation"].name(i)[-6:-4]) for i in range(10)]


def test_a_benchmark_of_corruptions_stands_for_75_sets():
    names = expand_corruptions(["tfds:cifar10_corrupted", "imagenet_v2"])
    assert len(names) == 76 and names[0] == "cifar10_corrupted/gaussian_noise_1" and names[-1] == "imagenet_v2"
    tfds = pytest.importorskip("tensorflow_datasets")
    for name in ("cifar10_corrupted", "imagenet2012_corrupted"):
        known = {f"{name}/{config.name}" for config in tfds.builder_cls(name).BUILDER_CONFIGS}
        assert set(expand_corruptions([name])) <= known


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet2012", "python -m resnet_jax.data.prepare imagenet2012 --data_dir"),
        ("tfds:oxford_flowers102", "python -m resnet_jax.data.prepare tfds:oxford_flowers102 --data_dir"),
        ("tfds:no_such_thing", "TensorFlow Datasets has no 'no_such_thing'"),
    ],
)
def test_data_sets_of_tfds_that_are_not_there_are_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        open_sources(name, str(tmp_path))
