"""A whole run in a bucket, on an emulator."""

import importlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from rich.console import Console

import resnet_jax
from resnet_jax import UserError, convert, evaluate, report, train
from resnet_jax.bucket import lease as leases
from resnet_jax.bucket.files import download, file_system, local_data
from resnet_jax.bucket.lease import Lease
from resnet_jax.bucket.mirror import mirror_folder
from resnet_jax.checkpoint import __main__ as checkpoint_command
from resnet_jax.errors import InterruptedRun, WorkdirInUse
from resnet_jax.workdir import StorageError
from tests.buckets import BUCKET, emulator
from tests.runs import ROOT, assert_the_same_end, start_process
from tests.soak.test_faults import SETTINGS, counts, end_somewhere
from tests.tiny import tiny_config

QUIET = Console(quiet=True)


@pytest.fixture
def storage(monkeypatch):
    with emulator() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield f"gs://{BUCKET}"


def fetched(url, folder):
    download(url, folder)
    return folder


def test_a_run_in_a_bucket_is_stopped_resumed_scored_and_loaded(storage, tmp_path):
    url, config = f"{storage}/runs/a", tiny_config()
    expected = train(config, tmp_path / "local", QUIET)
    with pytest.raises(InterruptedRun, match=f"stopped at step 13 of 30(?s:.*)--workdir={url}"):
        train(config, url, QUIET, stop_requested=lambda step: step == 13)
    result = train(config, url, QUIET)
    assert result["last"] == expected["last"]
    assert_the_same_end(fetched(url, tmp_path / "fetched"), tmp_path / "local")
    _, variables = resnet_jax.load_checkpoint(url, "latest")
    _, local = resnet_jax.load_checkpoint(tmp_path / "local", "latest")
    jax.tree.map(np.testing.assert_array_equal, variables, local)
    assert evaluate.evaluate(url, step="latest")["accuracy"] == expected["last"]["test"]["accuracy"]
    assert not pathlib.Path("gs:").exists()
    names = {path.name for path in (tmp_path / "fetched").iterdir()}
    assert names >= {"result.json", "metrics.jsonl", "curves.png", "card.json", "config.json", "environment.json"}
    assert not names & {".lease", ".lock"}


def test_answers_of_a_busy_server_are_asked_for_again(tmp_path, monkeypatch):
    with emulator(faults=0.05) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        assert train(tiny_config(), f"gs://{BUCKET}/run", QUIET)["completed"]
        assert resnet_jax.load_checkpoint(f"gs://{BUCKET}/run")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://nowhere/run", "gs://nowhere/run: there is no bucket nowhere, or you may not see it; check the URL"),
        ("s3://bucket/run", "workdir: expected a local folder or gs://BUCKET/PATH, found s3://bucket/run"),
    ],
)
def test_a_bucket_that_is_not_there_is_one_line(storage, url, message):
    with pytest.raises(UserError) as refused:
        train(tiny_config(), url, QUIET)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("report", ["gs://b/run"]),
        ("predict", ["RUN", "gs://b/x.jpg"]),
        ("predict", ["RUN", "IMAGE", "--cam", "gs://b/maps"]),
        ("ablate", ["ablate", "--workdir=gs://b/study"]),
        ("doctor", ["--workdir=gs://b/run"]),
    ],
)
def test_a_command_that_needs_a_local_path_says_so(command, arguments, finished, folder, capsys):
    paths = {"RUN": str(finished[0]), "IMAGE": str(next(folder.rglob("*.jpg")))}
    with pytest.raises(SystemExit) as end:
        module = importlib.import_module(f"resnet_jax.{command}")
        module.main([paths.get(argument, argument) for argument in arguments])
    assert end.value.code == 2 and "gs://b/" in capsys.readouterr().err
    assert not pathlib.Path("gs:").exists()


def test_what_commands_write_may_be_in_a_bucket(storage, finished, tmp_path, capsys):
    run = str(shutil.copytree(finished[0], tmp_path / "run"))  # evaluate leaves pictures in it
    urls = {name: f"{storage}/{name}" for name in ("w.safetensors", "slim", "p.csv", "r.png")}
    convert.main([run, "--to", urls["w.safetensors"]])
    checkpoint_command.main(["slim", run, "--to", urls["slim"]])
    evaluate.main([run, "--predictions", urls["p.csv"]])
    report.main([run, "--output", urls["r.png"]])
    printed = capsys.readouterr().out
    assert all(url in printed for url in urls.values())
    _, expected = resnet_jax.load_checkpoint(run)
    for url in (urls["w.safetensors"], urls["slim"]):
        jax.tree.map(np.testing.assert_array_equal, resnet_jax.load_checkpoint(url)[1], expected)
    files, root = file_system(storage)
    evaluate.main([run, "--predictions", str(tmp_path / "p.csv")])
    assert files.cat_file(f"{root}/p.csv") == (tmp_path / "p.csv").read_bytes()
    assert files.cat_file(f"{root}/r.png").startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        convert.main([run, "--to", urls["w.safetensors"]])
    assert "w.safetensors: expected the name of a new file" in capsys.readouterr().err


def test_checkpoints_in_a_bucket_are_looked_after_as_those_on_a_disk(storage, finished, tmp_path, capsys):
    files, root = file_system(storage)
    files.put(str(finished[0]), f"{root}/run", recursive=True)
    whole = [f"{storage}/run/checkpoints/{step}" for step in (finished[1]["best"]["step"], 60)]
    for command in (["ls", f"{storage}/run"], ["verify", f"{storage}/run"], ["diff", *whole]):
        local = [text.replace(f"{storage}/run", str(finished[0])) for text in command]
        printed = []
        for arguments in (command, local):
            checkpoint_command.main(arguments)
            out = capsys.readouterr().out.replace(f"{storage}/run", str(finished[0]))
            dates = re.compile(r"\d+-\d\d-\d\d|\d\d:\d\d:\d\d")  # of a copy
            printed.append([word for word in out.split() if word[-1].isalnum() and not dates.fullmatch(word)])
        assert printed[0] == printed[1]
    checkpoint_command.main(["average", f"{storage}/run", "--to", str(tmp_path / "mean")])
    assert resnet_jax.load_checkpoint(tmp_path / "mean")
    path = next(path for path in files.find(f"{root}/run/checkpoints/60/model") if "/d/" in path)
    files.pipe_file(path, b"other")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        checkpoint_command.main(["verify", f"{storage}/run"])
    said = capsys.readouterr()
    assert f"checkpoint {storage}/run/checkpoints/60 is corrupt" in said.out and "60; a run that" in said.err
    with pytest.raises(SystemExit):
        checkpoint_command.main(["ls", f"{storage}/none"])
    assert f"{storage}/none: expected a run or the folder of a step, found nothing there" in capsys.readouterr().err


def test_a_second_process_is_kept_out_and_the_lease_of_a_dead_one_is_taken(storage, monkeypatch):
    files, root = file_system(f"{storage}/run")
    monkeypatch.setattr(leases, "_SECONDS_BETWEEN_RENEWALS", 0.1)
    first = Lease(files, f"{root}/.lease", "gs://x")
    holder = json.loads(files.cat_file(f"{root}/.lease"))
    assert holder["pid"] == os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_is_gone", lambda holder: False)  # as another host sees it
        with pytest.raises(WorkdirInUse, match=f"another run is at work in gs://x, process {os.getpid()} on"):
            Lease(files, f"{root}/.lease", "gs://x")
    first.release()
    assert not files.exists(f"{root}/.lease")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    files.pipe_file(f"{root}/.lease", json.dumps({**holder, "pid": int(dead.stdout)}).encode())
    Lease(files, f"{root}/.lease", "gs://x").release()


def test_a_lease_that_was_taken_over_is_noticed(storage, monkeypatch):
    files, root = file_system(f"{storage}/run")
    monkeypatch.setattr(leases, "_SECONDS_BETWEEN_RENEWALS", 0.05)
    lease = Lease(files, f"{root}/.lease", "gs://x")
    files.pipe_file(f"{root}/.lease", b"{}")
    lease._thread.join(60)
    with pytest.raises(StorageError, match="another process took this run over"):
        lease.check()
    lease.release()
    assert files.exists(f"{root}/.lease")


def test_a_renewal_whose_answer_was_lost_is_no_takeover(storage, monkeypatch):
    files, root = file_system(f"{storage}/run")
    monkeypatch.setattr(leases, "_SECONDS_BETWEEN_RENEWALS", 0.05)
    renewed, lease = threading.Event(), Lease(files, f"{root}/.lease", "gs://x")
    write = lease._write

    def lose_answer(generation):
        write(generation)
        monkeypatch.setattr(lease, "_write", lambda generation: renewed.set() or write(generation))
        raise FileExistsError  # as after a second try, which finds what the first one wrote

    monkeypatch.setattr(lease, "_write", lose_answer)
    assert renewed.wait(60)
    lease.check()
    lease.release()
    assert not files.exists(f"{root}/.lease")


@pytest.mark.slow
@counts(1, 20)
def test_a_run_in_a_bucket_that_is_killed_ends_to_the_bit_as_if_it_had_not(storage, tmp_path, count):
    process = start_process(tmp_path / "reference", **SETTINGS)
    assert process.wait() == 0
    rng = random.Random(3)
    for trial in range(count):
        url = f"{storage}/{trial}"
        for _ in range(rng.randrange(1, 3)):
            process = start_process(url, **SETTINGS)
            status, output = end_somewhere(process, mirror_folder(url), signal.SIGKILL, rng)
            assert status in (0, -signal.SIGKILL), output
        process = start_process(url, **SETTINGS)
        output = process.communicate()[0]
        assert process.returncode == 0, output
        assert_the_same_end(fetched(url, tmp_path / str(trial)), tmp_path / "reference")
        shutil.rmtree(tmp_path / str(trial))
        assert (ROOT / "gs:").exists() is False


def stop_at_13(url):
    with pytest.raises(InterruptedRun):
        train(tiny_config(), url, QUIET, stop_requested=lambda step: step == 13)
    files, root = file_system(url)
    return files, f"{root}/checkpoints"


@pytest.mark.parametrize("killed", [(13,), (10, 13)])
def test_a_step_whose_upload_or_removal_was_cut_off_is_no_step(storage, tmp_path, killed, recwarn):
    url = f"{storage}/run"
    files, checkpoints = stop_at_13(url)
    assert {int(path.rpartition("/")[2]) for path in files.ls(checkpoints, detail=False)} == {10, 13}
    for step in killed:
        files.rm_file(f"{checkpoints}/{step}/manifest.json")
        files.pipe_file(f"{checkpoints}/{step}/.unfinished", b"")
    if len(killed) == 1:
        assert resnet_jax.load_card(url, "latest").source["step"] == 10
    else:
        with pytest.raises(UserError, match="no checkpoint yet"):
            resnet_jax.load_checkpoint(url)
    train(tiny_config(), url, QUIET)
    train(tiny_config(), tmp_path / "local", QUIET)
    assert_the_same_end(fetched(url, tmp_path / "f"), tmp_path / "local")
    assert not list((tmp_path / "f").rglob(".unfinished"))
    assert not (tmp_path / "f" / "checkpoints_corrupt").exists() and not recwarn.list


def test_a_manifest_that_was_lost_is_no_reason_to_begin_again(storage):
    files, checkpoints = stop_at_13(f"{storage}/run")
    for step in (10, 13):
        files.rm_file(f"{checkpoints}/{step}/manifest.json")
    for read in (lambda url: train(tiny_config(), url, QUIET), resnet_jax.load_checkpoint):
        with pytest.raises(UserError, match="/13 cannot be read: it has no manifest.json(?s:.*)no whole checkpoint"):
            read(f"{storage}/run")
    assert files.exists(f"{checkpoints}/13/model")


def test_images_in_a_bucket_are_copied_once_and_again_when_they_change(storage, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{storage}/photos"
    files, root = file_system(url)
    local = sorted(path for path in folder.rglob("*.jpg"))
    files.put([str(path) for path in local], [f"{root}/{path.relative_to(folder)}" for path in local])
    settings = {"data__name": "folder", "data__loader": "stream", "data__image_size": 16, "train__batch_size": 8}
    settings |= {"data__validation_size": 0.0}
    config = tiny_config(**settings, train__steps=2, data__data_dir=url)
    result = train(config, tmp_path / "run", QUIET)
    expected = train(tiny_config(**settings, train__steps=2, data__data_dir=str(folder)), tmp_path / "local", QUIET)
    assert result["last"] == expected["last"]
    copied = pathlib.Path(local_data(url))
    before = {path: path.stat().st_ino for path in copied.rglob("*.jpg")}
    assert {path: path.stat().st_ino for path in pathlib.Path(local_data(url)).rglob("*.jpg")} == before
    files.put([str(local[0])], [f"{root}/{local[1].relative_to(folder)}"])  # of the same name
    changed = pathlib.Path(local_data(url)) / local[1].relative_to(folder)
    assert changed.read_bytes() == local[0].read_bytes()
    with pytest.raises(UserError, match=f"data.data_dir: expected data, found nothing at {storage}/none"):
        local_data(f"{storage}/none")
