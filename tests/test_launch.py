"""The files of launch/ without a cluster: their grammar, and a dry run with the variables that each launcher sets."""

import json
import os
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from resnet_jax.job.address import given_address
from tests.jobs import ROOT, environment, free_port

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix != ".yaml")


def stub(folder, name, body):
    """Put a program of this name first in the search path; it notes each call in NAME.log, one JSON list a line."""
    note = f"open({str(folder / (name + '.log'))!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, subprocess\n{note}\n{body}\n")
    path.chmod(0o755)


def calls(folder, name):
    log = folder / f"{name}.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def launch(folder, *command, **variables):
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path, **variables}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    done = subprocess.run(["shellcheck", LAUNCH / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_kubernetes_takes_the_job_as_it_stands():
    documents = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))
    assert [each["kind"] for each in documents] == ["Service", "Job"]
    for each in documents:
        kubernetes_validate.validate(each, "1.30", strict=True)
    service, job = documents
    template = job["spec"]["template"]["spec"]
    assert template["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    count = next(each["value"] for each in template["containers"][0]["env"] if each["name"] == "NUM_PROCESSES")
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(count)


def test_a_pod_of_kubernetes_finds_its_place(tmp_path):
    stub(tmp_path, "python", "")
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    launch(tmp_path, *command, NUM_PROCESSES="2", JOB_COMPLETION_INDEX="1", POD_IP="10.1.2.3")
    ((program, *arguments),) = calls(tmp_path, "python")
    flags = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
    address = given_address(
        flags["coordinator"], int(flags["num_processes"]), int(flags["process_id"]), flags["coordinator_bind"]
    )
    assert program == "train.py" and (ROOT / flags["config"]).exists()
    assert address == ("resnet-jax-0.resnet-jax:12355", 2, 1, "10.1.2.3:12355", None)


@pytest.mark.parametrize(("statuses", "status"), [((0, 0), 0), ((0, 75), 75), ((3, 3), 3)])
def test_local_starts_so_many_processes_and_ends_with_their_status(tmp_path, statuses, status):
    stub(tmp_path, "python", f"sys.exit({statuses}['--process_id=1' in sys.argv])")
    done = launch(tmp_path, LAUNCH / "local.sh", "2", "--workdir=a b", PORT="7001")
    assert done.returncode == status, done.stderr
    started = sorted(call[1:] for call in calls(tmp_path, "python"))
    job = ["--coordinator=127.0.0.1:7001", "--num_processes=2"]
    assert started == [[*job, f"--process_id={index}", "--workdir=a b"] for index in (0, 1)]


@pytest.mark.parametrize(("status", "requeued"), [(0, []), (75, [["requeue", "41"]]), (3, [])])
def test_slurm_queues_the_job_again_after_status_75_alone(tmp_path, status, requeued):
    stub(tmp_path, "srun", f"sys.exit({status})")
    stub(tmp_path, "scontrol", "")
    done = launch(tmp_path, "bash", LAUNCH / "slurm.sbatch", "--workdir=/shared/run", SLURM_JOB_ID="41")
    assert done.returncode == status and calls(tmp_path, "scontrol") == requeued
    ((*_, program, distributed, workdir),) = calls(tmp_path, "srun")
    assert (program, distributed) == ("train.py", "--config.parallel.distributed=True")
    assert workdir == "--workdir=/shared/run"


def test_a_tpu_pod_is_asked_for_once_and_runs_the_command_on_all_workers(tmp_path):
    state = tmp_path / "state"
    stub(
        tmp_path,
        "gcloud",
        f"""
state = {str(state)!r}
if "describe" in sys.argv:
    if not os.path.exists(state):
        sys.exit(1)
    print(open(state).read())
    open(state, "w").write("ACTIVE")
elif "create" in sys.argv:
    open(state, "w").write("PROVISIONING")
""",
    )
    variables = {"NAME": "pod", "ZONE": "z", "TYPE": "v5litepod-16", "EVERY": "0"}
    for _ in range(2):  # the second continues the run on the pod that is there
        done = launch(tmp_path, LAUNCH / "tpu_pod.sh", "--workdir=gs://b/my run", **variables)
        assert done.returncode == 0, done.stderr
    made = calls(tmp_path, "gcloud")
    created = [call for call in made if "create" in call]
    assert len(created) == 1 and {"--accelerator-type=v5litepod-16", "--zone=z", "--node-id=pod"} <= set(created[0])
    trained = [call for call in made if "ssh" in call and "train.py" in call[-1]]
    assert len(trained) == 2 and all("--worker=all" in call for call in trained)
    assert trained[0][-1].rstrip().endswith(r"--config.parallel.distributed=True --workdir=gs://b/my\ run")


def test_a_tpu_pod_that_is_not_given_ends_the_wait(tmp_path):
    body = "if 'describe' in sys.argv: print('FAILED' if os.path.exists(__file__ + '.asked') else 'PROVISIONING')"
    stub(tmp_path, "gcloud", f"{body}\nif 'describe' in sys.argv: open(__file__ + '.asked', 'a').close()")
    done = launch(tmp_path, LAUNCH / "tpu_pod.sh", NAME="pod", ZONE="z", TYPE="v5litepod-16", EVERY="0")
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "pod is FAILED"


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {
            "SLURM_JOB_ID": "{port}",
            "SLURM_STEP_NODELIST": "127.0.0.1,127.0.0.2",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": "{index}",
            "SLURM_LOCALID": "{index}",
        },
        {
            "OMPI_MCA_orte_hnp_uri": "{hnp}.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": "{index}",
            "OMPI_COMM_WORLD_LOCAL_RANK": "{index}",
        },
    ],
    ids=["SLURM", "Open MPI"],
)
def test_processes_of_a_launcher_join_by_themselves(variables):
    code = "import jax, resnet_jax; resnet_jax.join(timeout=120); print(jax.process_count(), jax.process_index())"
    port = free_port()
    processes = []
    for index in range(2):
        own = {name: value.format(port=port, hnp=port << 12, index=index) for name, value in variables.items()}
        command = [sys.executable, "-c", code]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env={**environment(1), **own}, **pipes))
    said = [process.communicate(timeout=200) for process in processes]
    assert [text.splitlines()[-1] for text, _ in said] == ["2 0", "2 1"], said
    assert [error for _, error in said] == ["", ""]
