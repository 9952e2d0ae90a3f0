import json
import os
import subprocess
import sys

import pytest

from resnet_jax.xla_flags import cpu_features, with_fast_convolutions

FLAG = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


@pytest.mark.parametrize(
    "flags, features, expected",
    [
        ("", {"sse2", "avx2"}, FLAG),
        ("--xla_x=1", {"avx2"}, f"--xla_x=1 {FLAG}"),
        ("", {"avx2", "avx512f"}, FLAG),
        ("", {"asimd"}, ""),
        ("", set(), ""),
        ("--xla_cpu_experimental_ynn_fusion_type=", {"avx2"}, "--xla_cpu_experimental_ynn_fusion_type="),
    ],
)
def test_a_flag_is_chosen_by_the_processor_unless_the_user_has_set_it(flags, features, expected):
    assert with_fast_convolutions(flags, frozenset(features)) == expected


def test_the_program_that_jax_compiles_after_the_import_has_the_flag():
    code = (
        "import json, resnet_jax, jax, jax.numpy as jnp, os\n"
        "f = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', None, None, ('NHWC', 'HWIO', 'NHWC'))\n"
        "text = jax.jit(f).lower(jnp.ones((1, 8, 8, 8)), jnp.ones((3, 3, 8, 8))).compile().as_text()\n"
        "print(json.dumps([os.environ['XLA_FLAGS'], 'ynn' in text]))"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    flags, is_handed_over = json.loads(output.stdout.splitlines()[-1])
    assert flags == with_fast_convolutions("", cpu_features()) and not (flags and is_handed_over)
