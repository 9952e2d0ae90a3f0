import jax
import pytest

from resnet_jax.planning.chips import PEAKS, Peak, measured_peak, peak_of, step_bounds

CHIP = Peak({"float32": 2e12, "bfloat16": 4e12}, bandwidth=1e11, memory=10**9, interconnect=1e10)


def test_the_bounds_of_a_step_are_those_counted_by_hand():
    collectives = {"all-reduce": 4e9, "all-gather": 8e9}
    bounds = step_bounds(CHIP, "bfloat16", flop=8e12, traffic=3e11, collectives=collectives, devices=4)
    # Of 4 devices each sends three quarters: of sums twice.
    assert bounds == pytest.approx({"compute": 2.0, "memory": 3.0, "network": (2 * 4 + 8) * 0.75 / 10})
    assert step_bounds(CHIP, "float32", 8e12, 3e11, collectives, 4)["compute"] == 4.0


def test_one_device_sends_nothing_and_an_unknown_network_binds_nothing():
    assert step_bounds(CHIP, "float32", 1, 1, {"all-reduce": 4e9}, devices=1)["network"] == 0
    gpu = CHIP._replace(interconnect=None)
    assert step_bounds(gpu, "float32", 1, 1, {"all-reduce": 4e9}, devices=8).keys() == {"compute", "memory"}


def test_generations_of_tpus_have_their_published_ratios():
    """FLOP for a byte: of Google's pages, v5e 197 / 0.819, v6e 918 / 1.64, v5p 459 / 2.765, v4 275 / 1.228."""
    ratios = {kind: PEAKS[kind].flops["bfloat16"] / PEAKS[kind].bandwidth for kind in PEAKS if "TPU" in kind}
    expected = {"TPU v5 lite": 240.5, "TPU v6 lite": 559.8, "TPU v5": 166.0, "TPU v4": 223.9}
    assert {kind: ratios[kind] for kind in expected} == pytest.approx(expected, rel=1e-3)
    assert [PEAKS[kind].memory // 2**30 for kind in expected] == [16, 32, 95, 32]


def test_a_cpu_is_measured_and_divided_among_its_devices(monkeypatch):
    peak = measured_peak(side=256, numbers=2**20)
    assert 1e8 < peak.flops["float32"] < 1e14 and 1e8 < peak.bandwidth < 1e13
    monkeypatch.setattr("resnet_jax.planning.chips.measured_peak", lambda: CHIP)
    assert peak_of(jax.devices()[0]) == Peak({"float32": 5e11, "bfloat16": 1e12}, 2.5e10)
