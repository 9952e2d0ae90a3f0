import jax
import jax.numpy as jnp

from resnet_jax.planning.hlo import collectives, main_memory_traffic

# As the compiler of a TPU writes it: x is copied on chip, half of y is, and z stays on chip.
PROGRAM = """
HloModule step

%fused (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %neg.9 = f32[8,128]{1,0} negate(%p)
}

ENTRY %main (x: f32[8,128], y: bf16[8,256]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %y = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done.1 = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %slice-start = ((bf16[8,256]{1,0}), bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%y), slice={[0:8]}
  %slice-done = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  %z = (f32[128]{0:T(128)}, f32[8,128]{1,0:S(1)}) fusion(%copy-done.1, /*index=1*/%slice-done), kind=kLoop, calls=%fused
  %get-tuple-element.1 = f32[8,128]{1,0:S(1)} get-tuple-element(%z), index=1
  ROOT %out = f32[8,128]{1,0:T(8,128)} negate(%get-tuple-element.1), metadata={op_name="jit(step)/neg"}
}
"""


def test_traffic_is_what_goes_to_and_from_main_memory():
    x, half_of_y, sums, out = 4 * 8 * 128, 2 * 8 * 128, 4 * 128, 4 * 8 * 128
    assert main_memory_traffic(PROGRAM) == x + half_of_y + sums + out


def test_without_on_chip_memory_it_is_the_count_of_xla():
    x, y = jnp.ones((64, 32)), jnp.ones((32, 16), jnp.bfloat16)
    compiled = jax.jit(lambda x, y: (jnp.tanh(x) @ y.astype(jnp.float32)).sum(0)).lower(x, y).compile()
    assert main_memory_traffic(compiled.as_text()) == compiled.cost_analysis()["bytes accessed"]


# A loop of 3 turns by its condition, in it one of 5 by XLA's note; all-gathers that begin here and end there.
LOOPS = """
HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%turn (q: (s32[], f32[10])) -> (s32[], f32[10]) {
  %q = (s32[], f32[10]{0}) parameter(0)
  %q0 = s32[] get-tuple-element(%q), index=0
  %q1 = f32[10]{0} get-tuple-element(%q), index=1
  %all-reduce.2 = f32[10]{0} all-reduce(%q1), channel_id=2, to_apply=%sum
  ROOT %tuple.2 = (s32[], f32[10]{0}) tuple(%q0, %all-reduce.2)
}

%until (r: (s32[], f32[10])) -> pred[] {
  %r = (s32[], f32[10]{0}) parameter(0)
  ROOT %less.2 = pred[] custom-call(%r), custom_call_target="less"
}

%body (p: (s32[], f32[10])) -> (s32[], f32[10]) {
  %p = (s32[], f32[10]{0}) parameter(0)
  %while.2 = (s32[], f32[10]{0}) while(%p), condition=%until, body=%turn, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %copy.1 = (s32[], f32[10]{0}) copy(%while.2)
}

%condition (o: (s32[], f32[10])) -> pred[] {
  %o = (s32[], f32[10]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(3)
  %o0 = s32[] get-tuple-element(%o), index=0
  ROOT %less.1 = pred[] compare(%o0, %limit), direction=LT
}

ENTRY %main (x: f32[10], y: bf16[4]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  %y = bf16[4]{0} parameter(1)
  %zero = s32[] constant(0)
  %tuple.1 = (s32[], f32[10]{0}) tuple(%zero, %x)
  %all-reduce-start = (f32[10]{0}, bf16[4]{0}) all-reduce-start(%x, %y), channel_id=1, to_apply=%sum
  %all-reduce-done = (f32[10]{0}, bf16[4]{0}) all-reduce-done(%all-reduce-start)
  %all-gather-start = (f32[10]{0}, f32[40]{0}) all-gather-start(%x), channel_id=3, dimensions={0}
  %all-gather-done = f32[40]{0} all-gather-done(%all-gather-start)
  %while.1 = (s32[], f32[10]{0}) while(%tuple.1), condition=%condition, body=%body
  ROOT %out = f32[10]{0} get-tuple-element(%while.1), index=1
}
"""


def test_collectives_count_as_often_as_they_are_run_and_by_the_size_of_their_result():
    found = collectives(LOOPS)
    assert found == {"all-reduce": (1 + 3 * 5, 48 + 3 * 5 * 40), "all-gather": (1, 160)}


def test_traffic_in_loops_counts_as_often_as_they_run():
    entry = 2 * 48 + (40 + 40 + 160)  # what begins there: operands and results
    body, turn_bytes = 2 * (4 + 40), 2 * 40
    assert main_memory_traffic(LOOPS) == entry + 3 * (body + 5 * turn_bytes)


def test_a_loop_of_jax_is_counted_as_often_as_it_runs():
    def looped(x):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.sort(x), x)

    traffic = [
        main_memory_traffic(jax.jit(function).lower(jnp.ones(10_000)).compile().as_text())
        for function in (looped, lambda x: jnp.sort(x))
    ]
    assert 7 * traffic[1] <= traffic[0] < 7 * traffic[1] + 10 * 10_000 * 4 * 7


def test_what_devices_sum_is_the_size_of_the_sum():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    function = jax.shard_map(
        lambda x: (jax.lax.psum(x.sum(0), "data"), jax.lax.all_gather(x[:, 0], "data", tiled=True)),
        **{"mesh": mesh, "in_specs": spec, "out_specs": jax.sharding.PartitionSpec(), "check_vma": False},
    )
    program = jax.jit(function).lower(jnp.ones((8, 100))).compile().as_text()
    assert collectives(program) == {"all-reduce": (1, 400), "all-gather": (1, 32)}
