import os

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.device_memory import check_fits, largest_batch, machine_memory, memory_needed, memory_of
from resnet_jax.errors import UserError


def compiled(function, *shapes, **settings):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function, **settings).lower(*arguments).compile()


def test_a_program_needs_its_arguments_and_the_results_that_take_no_place_of_theirs():
    assert memory_needed(compiled(lambda x: x + 1, (1000, 25))) == 2 * 100_000
    assert memory_needed(compiled(lambda x: x + 1, (1000, 25), donate_argnums=0)) == 100_000


def test_a_program_needs_its_temporaries():
    needed = memory_needed(compiled(lambda x: jnp.sum(jnp.sort(x @ x.T, axis=1)[:, 0]), (500, 2)))
    assert needed > 500 * 500 * 4


def test_virtual_devices_divide_the_memory_of_the_machine():
    assert memory_of(jax.devices()[0]) == machine_memory() // 4


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/job/step\n", {"memory.max": "max", "job/memory.max": "3000000", "job/step/memory.max": "max"}, 3000000),
        ("0::/job\n", {"job/memory.max": "2000000"}, 2000000),
        ("5:cpu:/\n4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "4000000"}, 4000000),
        ("4:memory:/not/seen/here\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)
def test_the_limit_of_a_container_is_the_memory_of_the_machine(tmp_path, groups, files, limit):
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert machine_memory(tmp_path) == (limit or installed)


def test_without_cgroups_the_machine_has_what_is_installed(tmp_path):
    assert machine_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("multiple", [1, 8, 12])
@pytest.mark.parametrize("fixed", [0, 5000])
def test_the_largest_batch_of_an_affine_memory_is_found_exactly(fixed, multiple):
    def memory(batch):
        return fixed + 700 * batch

    found = largest_batch(100_000, (0, memory(0)), (24, memory(24)), multiple)
    assert found % multiple == 0 and memory(found) <= 100_000 < memory(found + multiple)
    assert largest_batch(100_000, (8, memory(8)), (24, memory(24)), multiple) == found


def test_no_batch_fits_where_the_state_does_not():
    assert largest_batch(1000, (0, 2000), (8, 3000)) == 0


def test_what_does_not_fit_is_refused_with_both_sizes():
    check_fits(5, 5, "a step", "less")
    check_fits(5, None, "a step", "less")
    with pytest.raises(UserError, match="8 images needs 16.20 GB on each device, which has 8.00 GB; try less"):
        check_fits(int(16.2e9), int(8e9), "a step of 8 images", "less")
