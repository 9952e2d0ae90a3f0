"""`resnet_jax.data.prepare` on tiny data sets in the formats of the real ones. Nothing here uses a network."""

import dataclasses
import gzip
import io
import pathlib
import socket
import tarfile

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import mnist as tfds_mnist

from resnet_jax import evaluate, loop
from resnet_jax.build import Run
from resnet_jax.data import archives
from resnet_jax.data import prepare as prepare_lib
from resnet_jax.data.facts import DATASETS
from resnet_jax.data.prepare import main, prepare
from resnet_jax.errors import UserError
from tests.tiny import tiny_config

SIZES = {"train": 30, "test": 20}
IDX_FILES = [f"{split}-{what}.gz" for split in ("t10k", "train") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")]


@pytest.fixture(autouse=True)
def tiny_data_sets(monkeypatch):
    for name, facts in DATASETS.items():
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(facts, splits=SIZES))
    monkeypatch.setattr(tfds_mnist, "_TRAIN_EXAMPLES", SIZES["train"])  # these builders read just so many
    monkeypatch.setattr(tfds_mnist, "_TEST_EXAMPLES", SIZES["test"])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every download meets a proxy on a port where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{held.getsockname()[1]}")
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        yield


def random_examples(shape, num_classes, seed=0, sizes=SIZES):
    """{split: (images, labels)}, with every image different from every other."""
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (n, *shape), np.uint8), rng.integers(0, num_classes, n).astype(np.uint8))
        for split, n in sizes.items()
    }


def write_idx(folder, seed=0):
    """Writes the four files of MNIST and its kin; returns what they hold."""
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


def run(*args):
    prepare(args[0], *map(str, args[1:]))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn_cropped"])
def test_every_pixel_and_label_reads_back_as_it_was_written(name, tmp_path, capsys):
    examples = WRITERS[name](tmp_path / "files")
    run(name, tmp_path / "data", tmp_path / "files")
    assert_reads_back(name, tmp_path / "data", examples)
    screen = capsys.readouterr().out
    assert str(tmp_path / "data" / name) in screen
    assert "train 30" in screen and "test 20" in screen
    assert f"python train.py --config.data.name={name} --config.data.data_dir={tmp_path / 'data'}" in screen


def test_data_sets_whose_files_have_the_same_names_do_not_mix(tmp_path):
    examples = {name: write_idx(tmp_path / name, seed) for seed, name in enumerate(("mnist", "kmnist"))}
    for name in examples:
        run(name, tmp_path / "data", tmp_path / name)
    for name, written in examples.items():
        assert_reads_back(name, tmp_path / "data", written)


def test_the_users_folder_is_only_read_and_nothing_but_the_data_set_is_left(tmp_path):
    write_idx(tmp_path / "files")
    before = contents(tmp_path / "files")
    run("mnist", tmp_path / "data", tmp_path / "files")
    assert contents(tmp_path / "files") == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mnist"]
    assert [path.name for path in (tmp_path / "data" / "mnist").iterdir()] == ["3.0.1"]


def test_only_files_with_another_checksum_are_reported_with_both_checksums(tmp_path, capsys, monkeypatch):
    examples = write_idx(tmp_path / "files")
    registered = tfds.builder_cls("mnist").url_infos
    for url in registered:
        if "labels" in url:  # these two are made the files that TFDS registers
            path = tmp_path / "files" / url.rsplit("/", 1)[-1]
            monkeypatch.setitem(registered, url, checksums.compute_url_info(path))
    run("mnist", tmp_path / "data", tmp_path / "files")
    screen = capsys.readouterr().out
    for url, info in registered.items():
        path = tmp_path / "files" / url.rsplit("/", 1)[-1]
        found = checksums.compute_url_info(path).checksum
        for said in (f"warning: {path} ", f"expected: {info.checksum}", f"found:    {found}"):
            assert (said in screen) == ("images" in url), said
    assert_reads_back("mnist", tmp_path / "data", examples)


def test_a_missing_file_is_named_with_its_url_and_a_present_one_is_not(tmp_path):
    write_idx(tmp_path / "files")
    for name in IDX_FILES[:2]:
        (tmp_path / "files" / name).unlink()
    with pytest.raises(UserError) as error:
        run("mnist", tmp_path / "data", tmp_path / "files")
    assert str(tmp_path / "files") in str(error.value)
    for name in IDX_FILES:
        assert (f"  {name}  https://storage.googleapis.com/" in str(error.value)) == (name in IDX_FILES[:2])
    assert not (tmp_path / "data").exists()


def test_a_download_without_a_network_says_what_to_fetch_and_the_next_call_works(tmp_path, monkeypatch):
    with pytest.raises(UserError) as error:
        run("kmnist", tmp_path / "data")
    assert "--downloads" in str(error.value)
    for name in IDX_FILES:
        assert f"http://codh.rois.ac.jp/kmnist/dataset/kmnist/{name}" in str(error.value)
    examples = write_idx(tmp_path / "files")
    run("kmnist", tmp_path / "data", tmp_path / "files")
    assert_reads_back("kmnist", tmp_path / "data", examples)


def test_a_damaged_file_is_named_and_the_next_call_works(tmp_path):
    examples = write_idx(tmp_path / "files")
    damaged = tmp_path / "files" / IDX_FILES[2]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"mnist could not be made from the files in .*(?s:.*){IDX_FILES[2]}"):
        run("mnist", tmp_path / "data", tmp_path / "files")
    damaged.write_bytes(whole)
    run("mnist", tmp_path / "data", tmp_path / "files")
    assert_reads_back("mnist", tmp_path / "data", examples)


def test_after_an_interruption_the_next_call_works(tmp_path, monkeypatch):
    examples = write_idx(tmp_path / "files")

    def interrupted(self, **kwargs):
        yield 0, {"image": examples["train"][0][0], "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(tfds_mnist.MNIST, "_generate_examples", interrupted)
        main(["mnist", "--data_dir", str(tmp_path / "data"), "--downloads", str(tmp_path / "files")])
    assert stop.value.code == 130
    run("mnist", tmp_path / "data", tmp_path / "files")
    assert_reads_back("mnist", tmp_path / "data", examples)


def test_a_split_of_another_size_is_an_error_and_the_next_call_works(tmp_path):
    write_cifar10(tmp_path / "short", sizes={"train": 29, "test": 20})
    with pytest.raises(UserError, match=r"cifar10 should have the splits .*'train': 30.*'train': 29"):
        run("cifar10", tmp_path / "data", tmp_path / "short")
    examples = write_cifar10(tmp_path / "files")
    run("cifar10", tmp_path / "data", tmp_path / "files")
    assert_reads_back("cifar10", tmp_path / "data", examples)


def test_what_is_prepared_already_is_reported_checked_and_left_alone(tmp_path, capsys, monkeypatch):
    write_idx(tmp_path / "files")
    run("mnist", tmp_path / "data", tmp_path / "files")
    before = contents(tmp_path / "data")
    capsys.readouterr()

    monkeypatch.setattr(prepare_lib.importlib.util, "find_spec", lambda name: None)  # this needs no TensorFlow
    main(["mnist", "--data_dir", str(tmp_path / "data")])
    screen = capsys.readouterr().out
    assert f"mnist is prepared already: {tmp_path / 'data' / 'mnist' / '3.0.1'}" in screen
    assert "train 30" in screen and "train.py" in screen

    facts = dataclasses.replace(DATASETS["mnist"], splits={"train": 31, "test": 20})
    monkeypatch.setitem(DATASETS, "mnist", facts)
    with pytest.raises(UserError, match=f"mnist should have .*Delete {tmp_path / 'data'}"):
        run("mnist", tmp_path / "data")
    assert contents(tmp_path / "data") == before

    info = tmp_path / "data" / "mnist" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        UserError, match="mnist cannot be prepared there: .*give their --data_dir as --tfrecord, and another --data_dir"
    ):
        run("mnist", tmp_path / "data")


def test_without_tensorflow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_lib.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        run("mnist", tmp_path / "data")
    assert "pip install -r requirements-prepare.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_gets_the_right_one_suggested(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fashionmnist"])
    assert stop.value.code == 2
    assert "did you mean 'fashion_mnist'?" in capsys.readouterr().err


def test_digits_need_no_preparation(capsys):
    main(["digits"])
    assert "digits needs no preparation" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, facts in DATASETS.items() if facts.tfds_name])
def test_tfds_registers_the_files_of_each_data_set_so_that_they_can_be_named(name):
    assert tfds.builder_cls(DATASETS[name].tfds_name).url_infos


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_class_names_are_those_of_tfds_in_its_order(name, tmp_path):
    assert tuple(tfds.builder(name, data_dir=tmp_path).info.features["label"].names) == DATASETS[name].class_names


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    write_idx(tmp_path / "files")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="mnist could not be written to"):
        run("mnist", tmp_path / "file" / "data", tmp_path / "files")


# --- data sets that stay on disk ---


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


def grey_and_label(source):
    stored = [source.read(i) for i in range(len(source))]
    return sorted((int(np.asarray(Image.open(io.BytesIO(s.image)))[0, 0, 0]), int(s.label)) for s in stored)


def test_imagenet_is_prepared_from_the_files_fetched_by_hand(tmp_path, monkeypatch, capsys):
    write_imagenet(tmp_path / "manual")
    main(["imagenet2012", "--data_dir", str(tmp_path / "data"), "--manual", str(tmp_path / "manual")])
    assert (
        "python train.py --config=configs/imagenet_resnet50.py --config.data.name=imagenet2012"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="should have the splits .*1281167"):
        archives.open_archive("imagenet2012", str(tmp_path / "data"))
    monkeypatch.setitem(archives._TFDS, "imagenet2012", ("validation", {"train": 8, "test": 4}))
    facts, splits = archives.open_archive("imagenet2012", str(tmp_path / "data"))
    assert facts.num_classes == 1000 and facts.class_names[1] == "n01443537"
    expected = sorted((100 * label + 10 * i, label) for label in range(2) for i in range(4))
    assert grey_and_label(splits["train"]) == expected
    official = [65, 970, 230, 809]  # the labels of the first validation images of ILSVRC2012
    assert grey_and_label(splits["test"]) == sorted(zip((5, 10, 15, 20), official, strict=True))
    config = tiny_config(data__name="imagenet2012", data__data_dir=str(tmp_path / "data"), data__loader="stream")
    config.update(model={"stem": "small"}, data={"image_size": 16, "validation_size": 0}, train={"batch_size": 4})
    run = Run(config)
    _, sums = run.train_steps(1)(run.initial_state(), run.feed(0))
    assert np.isfinite(sums["loss"]).all() and run.evaluate(run.initial_state().variables, "test")["count"] == 4


def test_without_the_files_to_fetch_by_hand_their_names_are_shown(tmp_path):
    for arguments in ({}, {"manual": str(tmp_path / "nowhere")}):
        with pytest.raises(UserError, match="ILSVRC2012_img_train.tar"):
            prepare("imagenet2012", str(tmp_path / "data"), **arguments)


def test_a_tfrecord_copy_is_converted_record_by_record(tmp_path):
    examples = write_idx(tmp_path / "files")
    builder = tfds.builder("fashion_mnist", data_dir=tmp_path / "old", file_format="tfrecord")
    prepare_lib._write_from_files(builder, "fashion_mnist", tmp_path / "files")
    before = contents(tmp_path / "old")
    with pytest.raises(UserError, match="give their --data_dir as --tfrecord, and another --data_dir"):
        prepare("fashion_mnist", str(tmp_path / "old"))
    prepare("fashion_mnist", str(tmp_path / "new"), tfrecord=str(tmp_path / "old"))
    assert_reads_back("fashion_mnist", tmp_path / "new", examples)
    assert contents(tmp_path / "old") == before
    with pytest.raises(UserError, match="expected TFRecord files of kmnist"):
        prepare("kmnist", str(tmp_path / "new"), tfrecord=str(tmp_path / "old"))


def test_a_tfrecord_copy_that_is_not_whole_is_refused(tmp_path):
    write_idx(tmp_path / "files")
    builder = tfds.builder("fashion_mnist", data_dir=tmp_path / "old", file_format="tfrecord")
    prepare_lib._write_from_files(builder, "fashion_mnist", tmp_path / "files")
    (shard,) = (tmp_path / "old").rglob("*-train.tfrecord-00000-of-00001")
    whole = shard.read_bytes()
    sizes = sum(SIZES.values()), SIZES["train"]
    for content, message in (
        (whole[:-5], "00000-of-00001 is damaged"),
        (whole[: len(whole) // SIZES["train"]], f"expected {sizes[0]} examples .*, found {sizes[0] - sizes[1] + 1}"),
        (None, f"expected {sizes[0]} examples .*, found {sizes[0] - sizes[1]}"),
    ):
        shard.unlink() if content is None else shard.write_bytes(content)
        with pytest.raises(UserError, match=message):
            prepare("fashion_mnist", str(tmp_path / "new"), tfrecord=str(tmp_path / "old"))
    assert not list((tmp_path / "new").rglob("*.array_record*"))


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


def test_evaluation_sets_are_read_with_all_right_labels_and_their_classes_alone(tmp_path):
    imagenet = tuple(tfds.builder("imagenet2012", data_dir=tmp_path).info.features["label"].names)
    store("imagenet2012_real", tmp_path, "validation", "real_label", [(10, [3, 4]), (20, []), (30, [999])])
    source, possible = archives.open_evaluation_set("imagenet2012_real", str(tmp_path), imagenet)
    assert [source.read(i).label.tolist() for i in range(3)] == [[3, 4], [], [999]] and possible is None
    store("imagenet_a", tmp_path, "test", "label", [(10, 6), (20, 11), (30, 6)])
    source, possible = archives.open_evaluation_set("imagenet_a", str(tmp_path), imagenet)
    _, as_elsewhere = archives.open_evaluation_set("tfds:imagenet_a", str(tmp_path), imagenet)
    np.testing.assert_array_equal(as_elsewhere, possible)
    assert np.flatnonzero(possible).tolist() == [6, 11] and grey_and_label(source) == [(10, 6), (20, 11), (30, 6)]
    store("imagenet_v2", tmp_path, "test", "label", [(10, 6)])
    assert archives.open_evaluation_set("imagenet_v2", str(tmp_path), imagenet)[1] is None
    with pytest.raises(UserError, match="expected the 2 classes of the run"):
        archives.open_evaluation_set("imagenet_v2", str(tmp_path), ("cat", "dog"))


def test_a_net_is_evaluated_on_corrupted_images(tmp_path, capsys):
    names = DATASETS["cifar10"].class_names
    for severity in (1, 2):
        records = [(20 * i, i) for i in range(10)]
        store(f"cifar10_corrupted/fog_{severity}", tmp_path, "test", "label", records, names, size=32)
    prepare("cifar10_corrupted/fog_1", str(tmp_path))
    command = f"python -m resnet_jax.evaluate WORKDIR --data cifar10_corrupted/fog_1 --data_dir {tmp_path}"
    assert command in capsys.readouterr().out
    write_cifar10(tmp_path / "files")
    prepare("cifar10", str(tmp_path), str(tmp_path / "files"))
    config = tiny_config(data__name="cifar10", data__data_dir=str(tmp_path), data__validation_size=0, train__steps=2)
    config.train.batch_size = 8
    loop.train(config, tmp_path / "run")
    capsys.readouterr()
    sets = [f"cifar10_corrupted/fog_{severity}" for severity in (1, 2)]
    evaluate.main([str(tmp_path / "run"), "--step", "latest", "--data", *sets])
    screen = capsys.readouterr().out
    assert screen.count("10 examples") == 2 and "mean of 2: accuracy" in screen
    with pytest.raises(SystemExit):
        evaluate.main([str(tmp_path / "run"), "--step", "latest", "--data", "cifar10_corrupted"])
    assert "python -m resnet_jax.data.prepare cifar10_corrupted/gaussian_noise_1" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # the whole benchmark, beginning with the first set
        main(["cifar10_corrupted", "--data_dir", str(tmp_path), "--downloads", str(tmp_path / "files")])
    assert "files that cifar10_corrupted/gaussian_noise_1 is made from" in capsys.readouterr().err
