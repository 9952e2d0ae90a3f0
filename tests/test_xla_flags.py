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
        ("flags.txt", {"avx2"}, "flags.txt"),
        ("", set(), ""),
        ("--xla_cpu_experimental_ynn_fusion_type=", {"avx2"}, "--xla_cpu_experimental_ynn_fusion_type="),
    ],
)
def test_a_flag_is_chosen_by_the_processor_unless_the_user_has_set_it(flags, features, expected):
    assert with_fast_convolutions(flags, frozenset(features)) == expected


@pytest.mark.skipif("avx2" not in cpu_features(), reason="YNNPACK does not compute convolutions here")
@pytest.mark.parametrize("is_set", [True, False])
def test_what_jax_compiles_after_the_import_has_the_flag(is_set):
    code = (
        "import os, resnet_jax\n"
        f"is_set = {is_set} or os.environ.pop('XLA_FLAGS')\n"
        "import jax, jax.numpy as jnp\n"
        "f = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', None, None, ('NHWC', 'HWIO', 'NHWC'))\n"
        "text = jax.jit(f).lower(jnp.ones((16, 16, 16, 64)), jnp.ones((3, 3, 64, 64))).compile().as_text()\n"
        "print(os.environ.get('XLA_FLAGS'), '__ynn_fusion' in text, sep='|')"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.splitlines()[-1].split("|") == ([FLAG, "False"] if is_set else ["None", "True"])
