"""The stream loader: order, crops, corrupt images, exact evaluation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import crops
from resnet_jax.data.corrupt import check_corrupt
from resnet_jax.data.crops import center_box, random_resized_box
from resnet_jax.data.device import DeviceLoader
from resnet_jax.data.sources import ArrayDataset, SyntheticSource
from resnet_jax.data.stream import StreamLoader
from resnet_jax.errors import UserError
from tests.data.examples import KEY, Numbered, host_batches, ids_of, image_shape, train_sampler


def unchanged(x):
    return x


def make_loader(source=None, test=None, key=KEY, rows=np.arange, shape=image_shape, **settings):
    return StreamLoader(
        {"train": source or SyntheticSource(50, 5, seed=0), "test": test or Numbered(10)},
        key,
        **{
            "batch_size": 12,
            "eval_batch_size": 16,
            "train_view": random_resized_box,
            "train_shape": shape,
            "eval_view": unchanged,
            "eval_shape": (8, 8, 3),
            "repeats": 1,
            "workers": "threads",
            "num_workers": 2,
            "shards": 1,
            "rows": rows,
            "distribute": unchanged,
            **settings,
        },
    )


# --- training ---


def test_crops_differ_between_positions_steps_and_seeds():
    source = SyntheticSource(1, 1, seed=0)
    first, second = host_batches(train_sampler(source, batch_size=4), count=2)
    images = [*first["image"], *second["image"]]
    images += [*host_batches(train_sampler(source, batch_size=4, seed=(1, 3)), count=1)[0]["image"]]
    assert len({image.tobytes() for image in images}) == 12


def test_the_draws_of_a_position_are_philox_numbers_counted_from_it():
    drawn = []

    def choose_box(draws, height, width, size):
        drawn.append(draws)
        return center_box(draws, height, width)

    sampler = train_sampler(batch_size=12, choose_box=choose_box, seed=(5, 6))
    sampler.fill(sampler.empty(7, 3), 7, np.array([2, 3, 9]))
    for position, draws in zip((2, 3, 9), drawn, strict=True):
        counter = (position * crops.DRAWS, 0, 0, 7)
        expected = np.random.Generator(np.random.Philox(key=(5, 6), counter=counter)).random((crops.DRAWS, 4))
        np.testing.assert_array_equal(draws, expected)


def test_every_epoch_holds_each_example_exactly_once():
    made = host_batches(train_sampler(Numbered(30), batch_size=12, choose_box=center_box), count=10)
    seen = np.concatenate([ids_of(batch) for batch in made])
    for epoch in np.split(seen, 4):
        assert sorted(epoch.tolist()) == list(range(30))


def test_repeated_examples_have_other_crops_and_lie_apart():
    class Seeing(SyntheticSource):
        def read(self, index):
            record = super().read(index)
            record.image[..., 0] = index  # survives every crop
            return record

    sampler = train_sampler(Seeing(20, 5, seed=0), batch_size=12, repeats=3)
    made = host_batches(sampler, count=5)  # 12 / 3 ids a batch: one epoch of 20
    ids = np.stack([batch["image"][:, 0, 0, 0] for batch in made])
    np.testing.assert_array_equal(ids[:, :4], ids[:, 4:8])
    np.testing.assert_array_equal(ids[:, :4], ids[:, 8:])
    assert sorted(ids[:, :4].ravel().tolist()) == list(range(20))
    for batch in made:
        assert all(not np.array_equal(batch["image"][i], batch["image"][i + 4]) for i in range(8))


def test_the_stream_gives_what_the_device_loader_gives():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 6, 6, 1), np.uint8), rng.integers(0, 5, 30).astype(np.int32)
    dataset = ArrayDataset(images, labels, tuple("abcde"))
    sizes = {"batch_size": 12, "eval_batch_size": 8, "shards": 1}
    splits = {"train": dataset, "test": dataset.take(np.arange(11))}
    device = DeviceLoader(splits, KEY, steps_per_call=1, replicate=jnp.asarray, **sizes)
    views = {"train_view": center_box, "eval_shape": (6, 6, 1), "shape": lambda step: (6, 6, 1)}
    stream = make_loader(splits["train"], splits["test"], **sizes, **views)
    for step in range(6):
        expected = device.gather(device.inputs(step), step, 0)
        found = stream.gather(stream.inputs(step), step, 0)
        assert not found["corrupt"].any() and found.keys() == expected.keys() | {"corrupt"}
        chex.assert_trees_all_equal_shapes_and_dtypes(
            {name: found[name] for name in expected}, jax.device_get(expected)
        )
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    assert stream.eval_batch_size("test") == device.eval_batch_size("test") == 8
    for one, other in zip(stream.eval_inputs("test"), device.eval_inputs("test"), strict=True):
        found, expected = stream.eval_gather("test", one, 0), device.eval_gather("test", other, 0)
        assert found.keys() == expected.keys() | {"corrupt"}
        np.testing.assert_array_equal(found["mask"], expected["mask"])
        for name in ("image", "label"):
            np.testing.assert_array_equal(found[name][found["mask"]], expected[name][expected["mask"]])


def test_the_loader_gives_a_step_again_and_any_other():
    seed = tuple(np.asarray(jax.random.key_data(KEY)).tolist())
    expected = host_batches(train_sampler(seed=seed), count=5)
    loader = make_loader()
    for step in (0, 0, 1, 2, 2, 0, 4, 4, 3):
        np.testing.assert_array_equal(loader.inputs(step).sharded["image"], expected[step]["image"])
    loader.close()
    np.testing.assert_array_equal(loader.inputs(3).sharded["image"], expected[3]["image"])


def test_images_grow_with_the_steps():
    loader = make_loader(shape=lambda step: image_shape(step, 8 if step < 2 else 12))
    assert [loader.inputs(step).sharded["image"].shape[1:] for step in range(4)] == [(8, 8, 3)] * 2 + [(12, 12, 3)] * 2


def test_several_keys_are_refused():
    with pytest.raises(UserError, match="order_key: expected one key, found 3"):
        make_loader(key=jax.random.split(KEY, 3))


# --- corrupt images ---


def test_a_corrupt_image_is_reported_and_the_next_takes_its_place():
    loader = make_loader(Numbered(30, corrupt=(4, 5)), batch_size=30, train_view=center_box)
    with pytest.warns(UserWarning, match="example [45] cannot be decoded") as warned:
        batch = loader.inputs(0).sharded
    assert len(warned) == 2 and batch["corrupt"].sum() == 2
    ids = ids_of(batch)
    assert sorted(ids.tolist()) == sorted([*range(4), 6, 6, 6, *range(7, 30)])
    np.testing.assert_array_equal(batch["label"], ids % 7)
    assert (ids[batch["corrupt"]] == 6).all()


def test_a_source_of_nothing_but_corrupt_images_ends():
    source = Numbered(3, corrupt=(0, 1, 2))
    with pytest.raises(UserError, match="none of 3 examples can be decoded, from example"):
        host_batches(train_sampler(source))


def test_more_corrupt_images_than_a_share_of_all_are_refused():
    check_corrupt(3, 100, 0.03)
    with pytest.raises(UserError, match=r"data.max_corrupt: expected at most 3.00% of 100 images .* found 4"):
        check_corrupt(4, 100, 0.03)


# --- evaluation ---


@pytest.mark.parametrize("batch_size", [2, 6, 10, 16])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_takes_every_example_exactly_once(batch_size, hosts):
    seen = []
    for host in range(hosts):
        loader = make_loader(
            eval_batch_size=batch_size,
            shards=hosts,
            rows=lambda size, host=host: np.split(np.arange(size), hosts)[host],
        )
        for inputs in loader.eval_inputs("test"):
            chex.assert_shape(inputs.sharded["image"], (loader.eval_batch_size("test") // hosts, 8, 8, 3))
            seen += ids_of(inputs.sharded)[inputs.sharded["mask"]].tolist()
    assert sorted(seen) == list(range(10))


def test_a_corrupt_image_is_not_dropped_from_evaluation():
    loader = make_loader(test=Numbered(10, corrupt=(4,)), shards=16)
    with pytest.warns(UserWarning, match="example 4 cannot be decoded"):
        ((_, batch),) = loader.eval_inputs("test")
    assert batch["mask"].sum() == 10
    assert np.flatnonzero(batch["corrupt"]).tolist() == [4]
    assert not batch["image"][4].any() and not batch["image"][10:].any()


# --- shapes ---


def test_the_shapes_of_inputs_are_known_before_anything_is_read():
    def growing(step):
        return (8, 8, 3) if step < 2 else (16, 16, 3)

    loader = make_loader(shape=growing, shards=4)
    pairs = [(loader.input_shapes(step), loader.inputs(step)) for step in (1, 2)]
    pairs += [(loader.eval_input_shapes("test"), next(loader.eval_inputs("test")))]
    loader.close()
    for expected, real in pairs:
        chex.assert_trees_all_equal(*(jax.tree.map(lambda x: (x.shape, x.dtype), each) for each in (expected, real)))


def test_shapes_need_no_data():
    class Nothing:
        def __len__(self):
            return 10

    loader = make_loader(Nothing(), Nothing())
    assert loader.input_shapes(0).sharded["image"].shape == (12, 8, 8, 3)
    assert loader.eval_input_shapes("test").sharded["image"].shape == (10, 8, 8, 3)
