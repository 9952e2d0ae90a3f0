"""The largest batch, by memories whose answer is known."""

import pytest

from resnet_jax.planning.search import Largest, search_largest


def counted(function):
    """(function, list of the batches that it was asked for)."""
    asked = []

    def memory(batch):
        asked.append(batch)
        return function(batch)

    return memory, asked


@pytest.mark.parametrize("state", [0, 3000])
@pytest.mark.parametrize("batch", [8, 64, 4096])
def test_of_an_affine_memory_two_compilations_more_find_it(state, batch):
    memory, asked = counted(lambda images: state + 100 * images)
    found = search_largest(memory, 100_000, batch, state, multiple=8, limit=10**6)
    answer = (100_000 - state) // 100 // 8 * 8
    assert found.fits <= answer < found.fails and found.fails - found.fits <= answer / 16
    assert memory(found.fits) <= 100_000 < memory(found.fails) and len(set(asked)) <= 4


def test_what_the_data_allow_is_enough():
    memory, asked = counted(lambda images: 10 * images)
    assert search_largest(memory, 10**6, 32, 0, multiple=32, limit=1257) == Largest(1248, None, 1248)
    assert asked == [32, 1248]
    assert search_largest(memory, 10**6, 1248, 0, multiple=32, limit=1257) == Largest(1248, None, 1248)


def test_where_not_even_the_smallest_batch_fits_none_is_found():
    memory, asked = counted(lambda images: 5000 + 10 * images)
    assert search_largest(memory, 4000, 1024, 5000, multiple=8, limit=10**6) == Largest(0, 8, 10**6)
    assert len(asked) == 2


def test_a_compiler_that_saves_memory_near_the_limit_is_followed():
    """It recomputes what does not fit, up to twice the batch."""
    memory, asked = counted(lambda images: 100 * images if images <= 1000 else max(100_000, 50 * images))
    found = search_largest(memory, 100_000, 256, 0, multiple=8, limit=10**6)
    assert 1400 < found.fits <= 2000 and len(asked) == 5


def test_a_batch_that_needs_a_bit_too_much_is_followed_down():
    memory, asked = counted(lambda images: 100 * images if images < 700 else 200 * images)
    found = search_largest(memory, 100_000, 256, 0, multiple=4, limit=10**6)
    assert 620 <= found.fits < 700 <= found.fails and len(asked) == 5


def test_a_compiler_that_refuses_from_some_batch_on_is_approached_by_halves():
    memory, asked = counted(lambda images: 100 * images if images <= 1000 else 10**6)
    found = search_largest(memory, 150_000, 256, 0, multiple=4, limit=10**6)
    assert 500 <= found.fits <= 1000 < found.fails <= 1100 and len(asked) == 5
