from concurrent.futures import Future

import numpy as np
import pytest

from resnet_jax.training import accumulator
from resnet_jax.training.accumulator import StepTimer

SUMS = ("loss", "correct", "correct5", "count", "corrupt", "grad_norm", "param_norm")


@pytest.mark.parametrize(
    ("device_done_at", "share"),
    [(5.0, 0.4), (12.0, 0.2), (None, 0.0)],
    ids=["before the host asked", "while it waited", "not yet when input came"],
)
def test_the_device_waits_from_when_it_is_done_with_what_it_had(monkeypatch, device_done_at, share):
    now = [10.0]
    monkeypatch.setattr(accumulator.time, "perf_counter", lambda: now[0])
    measured = StepTimer(lambda step, sums: None)
    sums = {name: np.ones(1) for name in SUMS}
    measured.add(1, sums)
    measured._done = Future()
    if device_done_at is not None:
        measured._done.set_result(device_done_at)
    with measured.waiting_for_input():
        now[0] = 14.0
    now[0] = 20.0
    assert measured.lap(1)["input_wait"] == pytest.approx(share)
