"""The stream loader: the same batches whoever makes them, exact evaluation, damaged images, and whole runs."""

import json
import shutil

import jax
import numpy as np
import pytest
import simplejpeg

import resnet_jax
from resnet_jax import UserError, evaluate, loop
from resnet_jax.build import Run
from resnet_jax.data import stream
from resnet_jax.data.archives import ArraySource, Stored, SyntheticSource
from resnet_jax.data.crops import center_box, random_resized_box
from resnet_jax.data.device import TrainLoader as DeviceTrainLoader
from resnet_jax.data.device import train_batch
from resnet_jax.data.sources import Examples
from resnet_jax.errors import InterruptedRun
from tests.tiny import tiny_config

KEY = jax.random.key(3)
THREADS = stream.Workers("threads", 2)


class Numbered(ArraySource):
    """JPEGs of one grey level, seven times their id; up to 36 of them."""

    def __init__(self, count, damaged=()):
        super().__init__(np.arange(count, dtype=np.uint8), np.arange(count, dtype=np.int32) % 7, tuple("abcdefg"))
        self._damaged = damaged

    def read(self, index):
        if index in self._damaged:
            return Stored(b"damaged", int(self.labels[index]))
        return Stored(simplejpeg.encode_jpeg(np.full((8, 8, 3), 7 * index, np.uint8)), int(self.labels[index]))


def shape_at(step, size=8):
    return size, size, 3


def ids_of(batch):
    return np.round(batch["image"][:, 0, 0, 0] / 7).astype(int)


def train_examples(source=None, batch_size=12, repeats=1, choose_box=random_resized_box, shape_at=shape_at):
    source = SyntheticSource(50, 5, seed=0) if source is None else source
    order = stream.EpochOrder(KEY, len(source))
    return stream.TrainExamples(source, order, (1, 2), batch_size, repeats, choose_box, shape_at)


def host_batches(examples, first=0, count=3, rows=None, workers=THREADS):
    rows = np.arange(examples.batch_size) if rows is None else rows
    return list(stream.batches(examples, first, count, rows, workers))


def assert_equal_batches(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# --- the same batch, whoever makes it ---


@pytest.mark.parametrize(
    "rows_of_hosts",
    [np.split(np.arange(12), 2), np.split(np.arange(12), 4), [np.arange(12)[::2], np.arange(12)[1::2]]],
    ids=["2", "4", "2, taking turns"],
)
def test_the_parts_of_several_hosts_make_up_the_batches_of_one(rows_of_hosts):
    examples = train_examples()
    whole = host_batches(examples, count=8)  # over the end of an epoch
    for rows in rows_of_hosts:
        expected = [{name: array[rows] for name, array in batch.items()} for batch in whole]
        assert_equal_batches(host_batches(examples, count=8, rows=rows), expected)


@pytest.mark.parametrize("threads", [1, 5])
def test_batches_do_not_depend_on_the_number_of_threads(threads):
    examples = train_examples(batch_size=40)  # more than one part each
    other = host_batches(examples, workers=stream.Workers("threads", threads))
    assert_equal_batches(other, host_batches(examples))


@pytest.mark.slow
def test_processes_make_the_same_batches_as_threads():
    examples = train_examples()
    made = host_batches(examples, first=3, workers=stream.Workers("processes", 2))
    assert_equal_batches(made, host_batches(examples, first=3))


def test_batches_can_start_at_any_step():
    examples = train_examples()
    whole = host_batches(examples, count=9)
    for first in (1, 4, 7):  # in and after the first epoch
        assert_equal_batches(host_batches(examples, first, 2), whole[first : first + 2])


def test_a_late_step_starts_as_fast_as_the_first():
    class Counting(SyntheticSource):
        reads = 0

        def read(self, index):
            type(self).reads += 1
            return super().read(index)

    host_batches(train_examples(Counting(50, 5, seed=0)), first=10**7, count=1)
    assert Counting.reads == 12


def test_crops_differ_between_positions_steps_and_seeds():
    source = SyntheticSource(1, 1, seed=0)
    first, second = host_batches(train_examples(source, batch_size=4), count=2)
    images = [*first["image"], *second["image"]]
    other_seed = stream.TrainExamples(source, stream.EpochOrder(KEY, 1), (1, 3), 4, 1, random_resized_box, shape_at)
    images += [*host_batches(other_seed, count=1)[0]["image"]]
    assert len({image.tobytes() for image in images}) == 12


def test_every_epoch_holds_each_example_exactly_once():
    made = host_batches(train_examples(Numbered(30), batch_size=12, choose_box=center_box), count=10)
    seen = np.concatenate([ids_of(batch) for batch in made])
    for epoch in np.split(seen, 4):
        assert sorted(epoch.tolist()) == list(range(30))


def test_repeated_examples_have_other_crops_and_lie_apart():
    class Seeing(SyntheticSource):
        def read(self, index):
            stored = super().read(index)
            stored.image[..., 0] = index  # survives every crop
            return stored

    examples = train_examples(Seeing(20, 5, seed=0), batch_size=12, repeats=3)
    made = host_batches(examples, count=5)  # 12 / 3 ids a batch: one epoch of 20
    ids = np.stack([batch["image"][:, 0, 0, 0] for batch in made])
    np.testing.assert_array_equal(ids[:, :4], ids[:, 4:8])
    np.testing.assert_array_equal(ids[:, :4], ids[:, 8:])
    assert sorted(ids[:, :4].ravel().tolist()) == list(range(20))
    for batch in made:
        assert all(not np.array_equal(batch["image"][i], batch["image"][i + 4]) for i in range(8))


def test_the_stream_gives_what_the_device_loader_gives():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 6, 6, 1), np.uint8), rng.integers(0, 5, 30).astype(np.int32)
    loader = DeviceTrainLoader(Examples(images, labels), KEY, 12, 1, put=np.asarray)
    source = ArraySource(images, labels, tuple("abcde"))
    examples = train_examples(source, choose_box=center_box, shape_at=lambda step: (6, 6, 1))
    for step, batch in enumerate(host_batches(examples, count=6)):
        expected = train_batch(loader.feed(step), 12, 0, 0, 1)
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])


def test_memory_is_used_again_only_when_nobody_holds_it():
    examples = train_examples()
    made = iter(stream.batches(examples, 0, 40, np.arange(12), THREADS))
    held = [next(made) for _ in range(3)]
    on_device = jax.device_put(next(made)["image"])
    part_of_one = next(made)["image"][2:5]
    addresses = {batch["image"].ctypes.data for batch in made}
    assert len(addresses) < 30  # of 35 batches
    expected = host_batches(examples, count=5)
    assert_equal_batches(held, expected[:3])
    np.testing.assert_array_equal(on_device, expected[3]["image"])
    np.testing.assert_array_equal(part_of_one, expected[4]["image"][2:5])


def test_the_loader_gives_a_step_again_and_any_other():
    examples = train_examples()
    expected = host_batches(examples, count=5)
    loader = stream.TrainLoader(examples, np.arange(12), lambda x: x, THREADS)
    for step in (0, 0, 1, 2, 2, 0, 4, 4, 3):
        np.testing.assert_array_equal(loader.feed(step).batch["image"], expected[step]["image"])


# --- damaged images ---


def test_a_damaged_image_is_reported_and_the_next_takes_its_place():
    source = Numbered(30, damaged=(4, 5))
    examples = train_examples(source, batch_size=30, choose_box=center_box)
    loader = stream.TrainLoader(examples, np.arange(30), lambda x: x, THREADS)
    with pytest.warns(UserWarning, match="example [45] cannot be decoded") as warned:
        batch = loader.feed(0).batch
    assert len(warned) == 2 and batch["damaged"].sum() == 2
    ids = ids_of(batch)
    assert sorted(ids.tolist()) == sorted([*range(4), 6, 6, 6, *range(7, 30)])
    np.testing.assert_array_equal(batch["label"], ids % 7)
    assert (ids[batch["damaged"]] == 6).all()


@pytest.mark.parametrize("devices", [1, 4])
def test_more_damaged_images_than_allowed_stop_the_run_and_are_named(folder, tmp_path, devices):
    copy = shutil.copytree(folder, tmp_path / "photos")
    for name in ("000.jpg", "002.jpg"):
        (copy / "train" / "china" / name).write_bytes(b"damaged")
    settings = {"data__validation_size": 0, "parallel__devices": devices, "train__steps": 12}
    with pytest.warns(UserWarning) as warned:  # five epochs with two damaged images of 20 are a tenth all along
        loop.train(photo_config(copy, **settings, data__max_damaged=0.1), tmp_path / "enough")
        with pytest.raises(UserError, match="data.max_damaged: expected at most 9.00% of 20 images .* found 2"):
            loop.train(photo_config(copy, **settings, data__max_damaged=0.09), tmp_path / "stopped")
    text = " ".join(str(warning.message) for warning in warned)
    assert "000.jpg cannot be decoded" in text and "002.jpg cannot be decoded" in text
    assert not (tmp_path / "stopped" / "result.json").exists()


def test_a_file_that_is_gone_is_a_damaged_image(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "photos")
    run = Run(photo_config(copy, data__max_damaged=0.2))
    (copy / "val" / "china" / "002.jpg").unlink()
    with pytest.warns(UserWarning, match="002.jpg cannot be decoded"):
        assert run.evaluate(run.initial_state().variables, "test")["count"] == 6


@pytest.mark.parametrize(
    ("cpus", "scale", "expected"), [(2, 0.1, "threads"), (16, 0.1, "processes"), (16, 0.9, "threads")]
)
def test_processes_are_chosen_where_many_threads_do_not_scale(monkeypatch, cpus, scale, expected):
    monkeypatch.setattr(stream, "_num_cpus", lambda: cpus)
    monkeypatch.setattr(stream, "_threads_scale", lambda *arguments: scale)
    examples = train_examples()
    assert stream.Workers("auto", None).settled(examples, np.arange(12)) == stream.Workers(expected, cpus)
    assert stream.Workers("auto", 3).settled(examples, np.arange(12)).count == 3


def test_the_scaling_of_threads_is_measured():
    assert stream._threads_scale(train_examples(), np.arange(4), cpus=2, count=1) > 0


def test_a_source_of_nothing_but_damaged_images_ends():
    source = Numbered(3, damaged=(0, 1, 2))
    with pytest.raises(UserError, match="none of 3 examples can be decoded, from example"):
        host_batches(train_examples(source))


def eval_loader(source, batch_size, rows=None):
    examples = stream.EvalExamples(source, lambda image: [image], np.zeros((8, 8, 3), np.uint8), batch_size)
    rows = np.arange(batch_size) if rows is None else rows
    return stream.EvalLoader(examples, rows, lambda x: x, THREADS)


@pytest.mark.parametrize("batch_size", [2, 6, 10, 16])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_takes_every_example_exactly_once(batch_size, hosts):
    seen = []
    for rows in np.split(np.arange(batch_size), hosts):
        for feed in eval_loader(Numbered(10), batch_size, rows).feeds():
            seen += ids_of(feed.batch)[feed.batch["mask"]].tolist()
    assert sorted(seen) == list(range(10))


def test_a_damaged_image_is_not_dropped_from_evaluation():
    with pytest.warns(UserWarning, match="example 4 cannot be decoded"):
        (feed,) = eval_loader(Numbered(10, damaged=(4,)), 16).feeds()
    assert feed.batch["mask"].sum() == 10
    assert np.flatnonzero(feed.batch["damaged"]).tolist() == [4]


# --- a folder of photographs, and whole runs ---


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """20 and 6 JPEGs in 2 classes, cut from photographs."""
    from sklearn.datasets import load_sample_images

    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for index in range(count):
            name = ("china", "flower")[index % 2]
            top, left = rng.integers((427 - 200, 640 - 260))
            cut = load_sample_images().images[index % 2][top : top + 200, left : left + 260]
            path = root / split / name / f"{index:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(cut)))
    return root


def photo_config(folder, **overrides):
    settings = {
        "data__name": "folder",
        "data__data_dir": str(folder),
        "data__loader": "stream",
        "data__image_size": 16,
        "data__validation_size": 4,
        "augment__view": "random_resized",
        "augment__flip": True,
        "augment__crop": 0,
        "train__batch_size": 8,
        "train__steps": 6,
        "eval__every_epochs": 1.5,
        "log__every_steps": 2,
    }
    return tiny_config(**{**settings, **overrides})


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, loop.train(photo_config(folder), workdir)


def training_losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]


def test_a_run_on_a_folder_reports_what_a_script_finds(finished):
    workdir, result = finished
    assert result["completed"] and result["data"] == "folder"
    assert json.loads((workdir / "config.json").read_text())["model"]["num_classes"] == 2
    model, variables = resnet_jax.load_checkpoint(workdir, "latest")
    images, labels = resnet_jax.load_data(workdir, "test")
    logits = model.apply(variables, images, train=False)
    assert int((logits.argmax(axis=-1) == labels).sum()) / 6 == result["last"]["test"]["accuracy"]
    scores = evaluate.evaluate(str(workdir), "test", "latest")
    assert scores["count"] == 6 and set(scores["per_class"]) == {"china", "flower"}
    assert scores["loss"] == result["last"]["test"]["loss"]


def test_every_log_line_says_how_long_the_device_waited(finished):
    lines = map(json.loads, (finished[0] / "metrics.jsonl").read_text().splitlines())
    shares = [line["input_wait"] for line in lines if line["split"] == "train"]
    assert len(shares) >= 3 and all(0 <= share <= 1 for share in shares)


def test_a_run_stopped_at_any_step_goes_on_as_if_it_had_not(folder, finished, tmp_path):
    for stop in (1, 5):
        with pytest.raises(InterruptedRun):
            loop.train(photo_config(folder), tmp_path / str(stop), stop_requested=lambda step, stop=stop: step == stop)
        result = loop.train(photo_config(folder), tmp_path / str(stop))
        assert result["last"] == finished[1]["last"]
        assert training_losses(tmp_path / str(stop)) == training_losses(finished[0])


@pytest.mark.parametrize("wrapper", ["shard_map", "pmap"])
def test_four_devices_train_on_the_batch_of_one(folder, wrapper):
    losses = []
    for devices in (1, 4):
        run = Run(photo_config(folder, parallel__devices=devices, parallel__wrapper=wrapper, norm__scope="global"))
        _, sums = run.train_steps(1)(run.initial_state(), run.feed(3))
        losses.append(float(sums["loss"][0]))
        counted = run.evaluate(run.initial_state().variables, "test")
        assert counted["count"] == 6 and counted["class_count"].tolist() == [3, 3]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_checkpoints_are_read_where_the_data_are_not(finished, folder, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["data_dir"] = str(tmp_path / "nowhere")
    (workdir / "config.json").write_text(json.dumps(config))
    model, _ = resnet_jax.load_checkpoint(workdir)
    assert model.num_classes == 2


def test_a_damaged_image_counts_as_an_error_in_evaluation(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "photos")
    run = Run(photo_config(copy, data__max_damaged=0.2))
    variables = run.initial_state().variables
    before = run.evaluate(variables, "test")
    logits_right = before["class_correct"]
    (copy / "val" / "china" / "002.jpg").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="002.jpg cannot be decoded"):
        after = Run(photo_config(copy, data__max_damaged=0.2)).evaluate(variables, "test")
    assert after["count"] == 6 and after["class_count"].tolist() == [3, 3]
    lost = before["correct"] - after["correct"]
    assert lost in (0, 1) and logits_right[0] - after["class_correct"][0] == lost
    with pytest.raises(UserError, match="data.max_damaged"), pytest.warns(UserWarning):
        Run(photo_config(copy)).evaluate(variables, "test")


def test_the_stream_and_the_device_loader_train_alike(tmp_path):
    settings = {"augment__flip": True, "augment__mixup": 0.2, "train__steps": 4}
    runs = [Run(tiny_config(data__loader=loader, **settings)) for loader in ("device", "stream")]
    for step in (0, 30):  # in the second epoch, too
        one, other = (run.train_steps(1)(run.initial_state(), run.feed(step))[1] for run in runs)
        np.testing.assert_array_equal(one["loss"], other["loss"])
    one, other = (run.evaluate(run.initial_state().variables, "test") for run in runs)
    np.testing.assert_array_equal(one["loss"], other["loss"])


def test_a_run_finds_its_data_from_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    loop.train(photo_config(folder.name, train__steps=1), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert len(resnet_jax.load_data(tmp_path / "run", "train")[1]) == 16


def test_images_grow_on_schedule(folder):
    run = Run(photo_config(folder, augment__sizes=((0.0, 8), (0.5, 12)), train__steps=4, eval__image_size=24))
    assert [run.feed(step).batch["image"].shape[1] for step in range(4)] == [8, 8, 12, 12]
    assert next(iter(run.eval_loader("test").feeds())).batch["image"].shape[1] == 24


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__image_size": None}, "data.image_size: expected a size"),
        ({"data__data_dir": None}, "data.data_dir: data.name=folder needs the path"),
        ({"data__data_dir": "/nowhere"}, "expected a folder of images by class, found no /nowhere/train"),
        ({"data__loader": "device"}, "data.loader: data.name=folder needs stream"),
        ({"data__name": "synthetic:9"}, "data.name: expected synthetic:EXAMPLES:CLASSES"),
        ({"data__name": "flder"}, "data.name: expected one of its names, found 'flder'.*did you mean 'folder'"),
        ({"data__validation_size": 20}, "data.validation_size: expected fewer than the 20 training examples"),
        ({"model__num_classes": 3}, "model.num_classes: expected 2, the classes of folder, found 3"),
        ({"augment__repeats": 3}, "augment.repeats: expected a divisor of the 8 images"),
        ({"augment__area": (0.5, 0.1)}, "augment.area"),
        ({"augment__jitter": (0.1, 0.1, 0.1, 0.9)}, "augment.jitter"),
        ({"augment__sizes": ((0.5,),)}, "augment.sizes"),
        ({"augment__sizes": ((0.5, 32), (0.0, 24))}, "augment.sizes"),
        ({"augment__area": ("a", "b")}, "augment.area"),
        ({"train__steps_per_dispatch": 2}, "train.steps_per_dispatch: expected 1 with data.loader=stream"),
        ({"train__bce_threshold": 0.2}, "train.bce_threshold"),
        ({"data__normalization": "pixel_mean"}, "data.normalization"),
    ],
)
def test_a_stream_that_cannot_run_is_refused(folder, overrides, message):
    with pytest.raises(UserError, match=message):
        Run(photo_config(folder, **overrides))


def test_grey_images_are_not_given_a_policy_for_colours():
    with pytest.raises(UserError, match="augment.policy: expected images in colour, found digits"):
        Run(tiny_config(augment__policy="randaugment"))
