import jax
import jax.numpy as jnp

from resnet_jax.planning.hlo import main_memory_traffic

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
