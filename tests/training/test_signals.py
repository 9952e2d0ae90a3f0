"""Requests to stop, with real signals, pipes and terminals."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from resnet_jax.checkpoint import SavedSteps
from resnet_jax.training import preemption
from resnet_jax.training.preemption import Preemption
from resnet_jax.workdir import StorageError
from tests.runs import ROOT, start_process


def read_until(file, text):
    """The lines up to one that holds the text."""
    output = ""
    for line in file:
        output += line
        if text in line:
            return output
    raise AssertionError(f"ended before {text!r}:\n{output}")


def assert_saved_and_to_be_continued(workdir):
    result = json.loads((workdir / "result.json").read_text())
    assert not result["completed"]
    assert SavedSteps(workdir).steps()[-1] == result["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_the_process_with_a_message_and_a_checkpoint(tmp_path, number):
    process = start_process(tmp_path, train__steps=100_000)
    output = read_until(process.stdout, "step 4/")
    process.send_signal(number)
    process.send_signal(number)  # as timeout(1) does, to the process and to its group
    output += process.communicate()[0]
    assert process.returncode == 75, output
    assert "stopping after the next step" in output and "which is saved" in output
    assert "Traceback" not in output
    assert_saved_and_to_be_continued(tmp_path)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_whatever_it_is_in(tmp_path):
    process = start_process(tmp_path / "run", cache=tmp_path / "cache", train__steps=100_000)
    output = read_until(process.stdout, "└")  # the end of the start screen: the first programs compile
    process.send_signal(signal.SIGTERM)
    output += read_until(process.stdout, "stopping after the next step; once more to end without saving")
    while process.poll() is None:  # those of the first half second are the same request
        process.send_signal(signal.SIGUSR1)
        os.sched_yield()
    output += process.communicate()[0]
    assert process.returncode == 128 + signal.SIGUSR1, output
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["resnet_jax.commands", "absl", "jax", "orbax.checkpoint"])
def test_a_signal_in_the_first_seconds_is_one_line(tmp_path, module, number):
    command = [sys.executable, "-X", "importtime", "train.py", f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.rstrip().endswith(f" {module}"):
            break
    process.send_signal(number)
    rest = process.communicate()[1]
    assert process.returncode == 75
    lines = [line for line in rest.splitlines() if not line.startswith("import time")]
    assert lines == ["stopped outside of training; nothing was lost"]


@pytest.mark.parametrize(("error", "status"), [(StorageError("/run: gone"), 3), (RuntimeError("a bug"), 1)])
def test_an_error_of_the_thread_that_saves_ends_the_process(monkeypatch, error, status):
    ended, printed = [], io.StringIO()
    monkeypatch.setattr("resnet_jax.signals.end_process", ended.append)
    monkeypatch.setattr(preemption, "_PATIENCE", 0.0)
    asked = Preemption(lambda: signal.SIGTERM, Console(file=printed))

    def fail():
        raise error

    with asked.at_work(), asked.interruptible(fail):
        asked.serve()
    assert ended == [status] and str(error) in printed.getvalue()


def test_a_signal_while_the_interpreter_ends_changes_no_status():
    script = (
        "import os, signal, sys\n"
        "from resnet_jax import signals\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):\n"
        "        kill(pid, number)\n"
        "signals.end_outside_of_training()\n"
        "sys.late = Late()\n"
        "raise SystemExit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 3


@pytest.mark.slow
def test_a_signal_in_a_long_compilation_ends_the_process_before_it_is_over(tmp_path):
    process = start_process(tmp_path / "run", cache=tmp_path / "cache", train__steps=100_000, model__name="resnet56")
    output = read_until(process.stdout, "└")  # the end of the start screen: the first programs compile
    process.send_signal(signal.SIGTERM)
    output += process.communicate()[0]
    assert process.returncode == 75, output
    assert "stopped before a step was made; nothing was lost" in output
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_ctrl_c_when_nobody_reads_saves_all_the_same(tmp_path):
    process = start_process(tmp_path, train__steps=100_000)
    read_until(process.stdout, "step 4/")
    process.stdout.close()
    wait_for_line(tmp_path / "metrics.jsonl", 10)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 75
    assert_saved_and_to_be_continued(tmp_path)


def wait_for_line(path, count):
    """Return when a file has so many lines."""
    with path.open() as file:
        lines, end = 0, time.monotonic() + 100
        while lines < count and time.monotonic() < end:
            lines += bool(file.readline())
        assert lines == count


def in_a_terminal(command):
    """(pid of the session's first process, file descriptor of its terminal)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.closerange(3, 1000)  # the other side of the terminal among them
        os.chdir(ROOT)
        os.execve("/bin/sh", ["sh", "-c", command], {**os.environ, "PYTHONPATH": str(ROOT)})
    return pid, terminal


def read_terminal_until(terminal, text=None):
    """Read until the text comes; without one, to the end."""
    output = b""
    while text is None or text not in output:
        try:
            output += os.read(terminal, 10_000)
        except OSError:  # the other side is closed
            assert text is None, output.decode()
            return


@pytest.mark.slow
def test_ctrl_c_under_a_pipe_to_tee_saves_and_says_so_in_the_status(tmp_path):
    run, log, status = tmp_path / "run", tmp_path / "log", tmp_path / "status"
    command = f"{sys.executable} -m tests.tiny {run} train__steps=100000; echo $? > {status}"
    pid, terminal = in_a_terminal(f"trap : INT; (trap : INT; {command}) | tee {log}")  # the shells live on
    read_terminal_until(terminal, b"step 4/")
    os.write(terminal, b"\x03")  # Ctrl-C, for all that are in front: tee dies of it
    read_terminal_until(terminal)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert status.read_text().strip() == "75"
    assert_saved_and_to_be_continued(run)
    assert "step 4/" in log.read_text()


@pytest.mark.slow
def test_a_terminal_that_is_closed_is_a_request_to_stop(tmp_path):
    run = tmp_path / "run"
    pid, terminal = in_a_terminal(f"exec {sys.executable} -m tests.tiny {run} train__steps=100000")
    read_terminal_until(terminal, b"loss")
    os.close(terminal)
    _, code = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(code) == 75
    assert_saved_and_to_be_continued(run)


@pytest.mark.slow
def test_a_full_disk_under_the_log_of_what_is_printed_ends_nothing(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tests.tiny", str(tmp_path), "train__steps=20"]
        assert subprocess.run(command, cwd=ROOT, stdout=full, stderr=full).returncode == 0
    assert json.loads((tmp_path / "result.json").read_text())["completed"]


@pytest.mark.slow
def test_a_signal_that_was_ignored_from_the_start_is_no_request(tmp_path):
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "tests.tiny", str(tmp_path), "train__steps=20"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    read_until(process.stdout, "└")
    process.send_signal(signal.SIGHUP)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "result.json").read_text())["completed"]


@pytest.mark.slow
def test_a_process_in_which_nothing_moves_prints_its_stacks_and_ends(tmp_path):
    code = (
        "import threading\nfrom resnet_jax import train\nfrom tests.tiny import tiny_config\n"
        "def hang(step):\n    if step == 5: threading.Event().wait()\n"
        f"train(tiny_config(train__watchdog_seconds=15.0), {str(tmp_path / 'run')!r}, stop_requested=hang)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Timeout (0:00:15)!" in ended.stderr and "in hang" in ended.stderr and "in run_loop" in ended.stderr
