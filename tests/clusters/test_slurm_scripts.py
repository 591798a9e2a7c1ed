"""The submit scripts for SLURM, with small stand-ins of SLURM's and Ray's commands: what they do at SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lingraft.config.recipes import cluster_files

SCRIPTS = ["slurm_ray.sh", "slurm_torchrun.sh"]
# Each notes how it was called. srun runs what follows its options; scancel signals what srun runs, as SLURM does.
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> calls; if [ "$1" = show ]; then echo first; echo second; fi',
    "squeue": 'echo "${STATE:-RUNNING}"',
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat study.pid)"',
    "srun": (
        'echo "srun $*" >> calls; while [ "${1#--}" != "$1" ]; do shift; done\n'
        'if [ "$1" = getent ]; then echo "192.0.2.7 STREAM first"; else exec "$@"; fi'
    ),
    "ray": (
        'case "$1" in start) echo "ray $*" >> calls; test "${RAY:-starts}" = starts && exec sleep 60;; '
        'status) test "${RAY:-starts}" = starts;; esac'
    ),
    "torchrun": 'echo "torchrun $*" >> calls; exec lingraft run',
    "lingraft": (
        'echo "lingraft $*" >> calls; echo $$ > study.pid\n'
        'trap "sleep 0.5; echo saved >> calls; exit 143" TERM\n'
        'touch started; for look in $(seq "${LOOKS:-100}"); do sleep 0.1; done; exit "${CODE:-0}"'
    ),
}


@dataclass(frozen=True)
class Job:
    """A script at work in a folder of its own."""

    folder: Path
    process: subprocess.Popen[str]

    def wait_until_started(self) -> None:
        until = time.monotonic() + 60
        while not (self.folder / "started").exists():
            assert time.monotonic() < until
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text(encoding="utf-8").splitlines()


def submit(folder: Path, script: str, **variables: str) -> Job:
    commands = folder / "commands"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (commands / name).chmod(0o755)
    environment = {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NAME": "lingraft",
        "SLURM_JOB_NODELIST": "[first,second]",
        "SLURM_CPUS_ON_NODE": "4",
    }
    process = subprocess.Popen(
        ["bash", str(cluster_files()[script][0]), "study.yaml", "--runs", "a folder"],
        cwd=folder,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Job(folder, process)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_told_to_stop_waits_until_it_is_saved_and_queues_the_job_again(
    script: str, tmp_path: Path
) -> None:
    job = submit(tmp_path, script)
    job.wait_until_started()
    job.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    job.process.send_signal(signal.SIGTERM)  # it may come twice
    _, said = job.process.communicate(timeout=60)
    assert job.process.returncode == 143, said
    calls = job.calls()
    assert "scontrol requeue 17" in calls[calls.index("saved") :]
    assert calls.count("scontrol requeue 17") == 1


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED"])
def test_a_job_that_slurm_ends_itself_is_saved_and_not_queued(
    script: str, state: str, tmp_path: Path
) -> None:
    job = submit(tmp_path, script, STATE=state)
    job.wait_until_started()
    job.process.send_signal(signal.SIGTERM)
    job.process.communicate(timeout=60)
    assert "saved" in job.calls()
    assert "scontrol requeue 17" not in job.calls()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_study_that_ends_by_itself_gives_the_job_its_exit_code(
    script: str, code: int, tmp_path: Path
) -> None:
    job = submit(tmp_path, script, CODE=str(code), LOOKS="1")
    _, said = job.process.communicate(timeout=60)
    assert job.process.returncode == code, said
    assert "scontrol requeue 17" not in job.calls()


def test_ray_runs_on_every_node_and_the_study_on_its_head(tmp_path: Path) -> None:
    job = submit(tmp_path, "slurm_ray.sh", LOOKS="1")
    job.process.communicate(timeout=60)
    calls = job.calls()
    (head,) = [call for call in calls if call.startswith("ray start --head")]
    (worker,) = [call for call in calls if call.startswith("ray start --address")]
    assert "--node-ip-address=192.0.2.7 --port=20017 " in head
    assert "--address=192.0.2.7:20017 " in worker
    assert "lingraft run study.yaml --runs a folder --ray 192.0.2.7:20017" in calls
    steps = [call for call in calls if call.startswith("srun") and "ray start" in call]
    nodes = [[word for word in step.split() if word.startswith("--nodelist")] for step in steps]
    assert sorted(nodes) == [["--nodelist=first"], ["--nodelist=second"]]  # both are started at once


def test_where_ray_does_not_start_the_job_says_where_to_look(tmp_path: Path) -> None:
    job = submit(tmp_path, "slurm_ray.sh", RAY="fails")
    _, said = job.process.communicate(timeout=60)
    assert job.process.returncode == 1
    assert said.splitlines()[-1] == "slurm_ray.sh: Ray did not start on first, see lingraft-17-ray.log"


def test_torchrun_starts_the_study_once_a_node_with_a_meeting_place_of_the_job(tmp_path: Path) -> None:
    job = submit(tmp_path, "slurm_torchrun.sh", LOOKS="1", SLURM_GPUS_ON_NODE="8")
    job.process.communicate(timeout=60)
    (call,) = [call for call in job.calls() if call.startswith("torchrun")]
    assert call.startswith("torchrun --nnodes=2 --nproc-per-node=8 ")
    assert (
        "--rdzv-backend=c10d --rdzv-endpoint=192.0.2.7:20017 --rdzv-id=17 -m lingraft run study.yaml" in call
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_outside_of_a_job_says_how_it_is_submitted(script: str, tmp_path: Path) -> None:
    path = cluster_files()[script][0]
    for arguments, environment in (([], {"SLURM_JOB_ID": "17"}), (["study.yaml"], {})):
        done = subprocess.run(
            ["bash", str(path), *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.partition(" STUDY")[0]) == (2, f"usage: sbatch {script}")
