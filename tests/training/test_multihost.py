"""Two processes on this machine, as on a pod: they must train as one process with as many devices."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import simplejpeg

from resnet_jax import train
from resnet_jax.training.logs import read_metrics
from tests.jobs import run_job
from tests.runs import assert_the_same_end, last_state, logged
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent.parent
SETTINGS = {"parallel__devices": None, "norm__scope": "global", "train__steps": 25, "augment__pad_crop": 1}
STREAMED = {
    **SETTINGS,
    "data__name": "synthetic:90:5",
    "data__loader": "stream",
    "data__image_size": 16,
    "data__validation_size": 10,
    "augment__view": "random_resized",
    "augment__flip": True,
    "augment__repeats": 2,
    "augment__policy": "trivialaugment",
    "augment__mixup": 0.2,
    "train__batch_size": 16,
    "train__steps": 12,
    "eval__batch_size": 4,
    "log__every_steps": 2,
}
RUNS = {"device": SETTINGS, "stream": STREAMED}
CORRUPT = {key: value for key, value in STREAMED.items() if not key.startswith("augment__")}
CORRUPT |= {"data__name": "folder", "data__validation_size": 0}
PROCESS = """
import sys, jax, resnet_jax
workdir, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
resnet_jax.join(f"127.0.0.1:{port}", num_processes=2, process_id=index)
assert jax.device_count() == 4
from resnet_jax import train
from resnet_jax.training.agreement import check_agreement
from resnet_jax.training.parallel import DataParallel
from tests.tiny import tiny_config
import numpy as np
"""
TRAIN = f"""
for name, settings in {RUNS}.items():
    train(tiny_config(**settings, parallel__distributed=True), workdir + "/" + name)
try:
    config = tiny_config(**{CORRUPT}, data__data_dir=workdir + "/photos", parallel__distributed=True)
    train(config, workdir + "/stopped")
except resnet_jax.UserError as error:
    print("stopped:", error)
for name in ("other", "only"):  # data of which one process has fewer, or none
    config = tiny_config(**{CORRUPT}, data__data_dir=workdir + f"/{{name}}{{index}}", parallel__distributed=True)
    try:
        train(config, workdir + "/refused")
    except resnet_jax.UserError as error:
        print(f"{{name}}:", error)
try:
    parallel = DataParallel(jax.devices())
    check_agreement(parallel, parallel.replicate({{"kernel": np.full(3, index)}}), "step 0")
except resnet_jax.UserError as error:
    print("refused:", error)
"""
STUDY = f"""
config = tiny_config(**{SETTINGS}, parallel__distributed=True)
from rich.console import Console
from resnet_jax.studies.run import run_study
from resnet_jax.studies import grid, make_study
study = make_study("A study", config, grid({{"optim.lr": (0.1, 1e30)}}), seeds=(1,))
study.replicas = 2
failed = run_study(study, workdir + "/study", Console(quiet=index > 0))
assert len(failed) == 1, failed
"""


def run_two_processes(code, workdir):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"  # the last one counts
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS + code, str(workdir), str(port), str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def trained_by_two_processes(tmp_path_factory):
    """A folder with both RUNS and the STUDY, and what the processes printed of them and of a run with CORRUPT data."""
    folder = tmp_path_factory.mktemp("two")
    for path in (folder / "photos" / split / "a" / f"{i}.jpg" for split in ("train", "test") for i in range(30)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(np.full((8, 8, 3), 100, np.uint8)))
    (folder / "photos" / "train" / "a" / "7.jpg").write_bytes(b"corrupt")
    for name in ("other0", "other1", "only0"):
        shutil.copytree(folder / "photos", folder / name)
    (folder / "other1" / "train" / "a" / "3.jpg").unlink()
    return folder, run_two_processes(TRAIN + STUDY, folder)


@pytest.mark.slow
def test_one_of_two_processes_prints(trained_by_two_processes):
    _, outputs = trained_by_two_processes
    assert outputs[0].count("Results") == 2 and "Results" not in outputs[1]


@pytest.mark.slow
def test_a_corrupt_image_that_one_process_reads_stops_both(trained_by_two_processes):
    _, outputs = trained_by_two_processes
    assert all("stopped: data.max_corrupt: expected at most 0.10%" in output for output in outputs)
    assert ["7.jpg cannot be decoded" in output for output in outputs].count(True) == 1


@pytest.mark.slow
def test_processes_with_different_data_end_and_the_odd_one_is_named(trained_by_two_processes):
    _, outputs = trained_by_two_processes
    host = socket.gethostname()
    assert all("other: parallel.distributed: expected the same data in every process" in text for text in outputs)
    assert all(f"found another in process 1 ({host}) than in the others" in text for text in outputs)
    assert f"only: process 1 ({host}): answer of the data: data.data_dir: expected a folder of images" in outputs[0]
    assert "only: data.data_dir: expected a folder of images by class, found no" in outputs[1]


@pytest.mark.slow
def test_processes_that_start_from_different_weights_are_refused(trained_by_two_processes):
    _, outputs = trained_by_two_processes
    assert all("refused: step 0: expected the same state on every device, found another on" in text for text in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("loader", RUNS)
def test_two_processes_with_two_devices_train_as_one_with_four(trained_by_two_processes, loader, tmp_path):
    two, one = trained_by_two_processes[0] / loader, tmp_path
    train(tiny_config(**RUNS[loader]), one)
    lines = [
        [(line["split"], line["step"], line["loss"], line["accuracy"]) for line in read_metrics(path / "metrics.jsonl")]
        for path in (two, one)
    ]
    assert len(lines[0]) == len(lines[1]) > 10
    for by_two, by_one in zip(*lines, strict=True):
        assert by_two[:2] == by_one[:2]
        np.testing.assert_allclose(by_two[2:], by_one[2:], rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, last_state(two), last_state(one))


@pytest.fixture(scope="module")
def trained_by_processes(tmp_path_factory):
    """Folders with both RUNS, trained by 1, 2 and 4 processes with 4 devices together."""
    code = f"""
resnet_jax.join(address, count, index, timeout=120)
for name, settings in {RUNS}.items():
    train(tiny_config(**{{**settings, "train__steps": 10, "train__ema_decay": 0.9}}), workdir + "/" + name)
"""
    folders = {count: tmp_path_factory.mktemp(f"{count}_processes") for count in (1, 2, 4)}
    for count, folder in folders.items():
        ended = run_job(code, [folder] * count, devices=4 // count)
        assert [status for status, _, _ in ended] == [0] * count, ended
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("loader", RUNS)
@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_trains_to_the_same_bits(trained_by_processes, count, loader):
    folders = trained_by_processes
    assert len(logged(folders[1] / loader)) > 4
    assert_the_same_end(folders[count] / loader, folders[1] / loader)


@pytest.mark.slow
def test_a_study_on_two_processes_has_one_result_for_each_run(trained_by_two_processes, tmp_path):
    study = trained_by_two_processes[0] / "study"
    found = [json.loads(line) for line in (study / "results.jsonl").read_text().splitlines()]
    assert [(line["name"], line["seed"]) for line in found] == [("optim.lr=0.1", 1)]
    assert [path.parts[-3] for path in study.rglob("error.txt")] == ["optim.lr=1e+30"]
    result = train(tiny_config(**SETTINGS, seed=1), tmp_path)
    assert found[0]["last"]["test"] == pytest.approx(result["last"]["test"], rel=1e-3)
