"""What stands in the files for clusters and containers: it can be read, and agrees with the rest of the project."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.config.recipes import cluster_files, recipe_folder
from lingraft.config.schema import Study

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def instructions(dockerfile: str = "Dockerfile") -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions and what follows them, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / dockerfile).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def of(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(cluster_files()[path][0].read_text(encoding="utf-8")))


def lingraft_options(command: str) -> set[str]:
    return {word for word in shlex.split(command) if word.startswith("--")}


def test_every_file_for_clusters_is_listed_and_no_study() -> None:
    assert {path.name for path in (recipe_folder() / "clusters").iterdir()} == set(cluster_files())
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    assert [name for name in cluster_files() if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", [name for name in cluster_files() if name.endswith(".sh")])
def test_a_submit_script_is_bash_that_saves_and_is_queued_again(name: str) -> None:
    path = cluster_files()[name][0]
    subprocess.run(["bash", "-n", str(path)], check=True)
    asked = re.findall(r"^#SBATCH (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"--requeue", "--open-mode=append"} <= set(asked)
    (warning,) = [one for one in asked if one.startswith("--signal=")]
    assert re.fullmatch(r"--signal=B:TERM@\d+", warning)
    (allowed,) = re.findall(r"--shutdown-timeout=(\d+)", path.read_text(encoding="utf-8")) or ["0"]
    assert int(allowed) < int(warning.partition("@")[2]), "torchrun must have killed nobody when SLURM does"


def test_the_job_of_kuberay_is_one_that_can_go_on() -> None:
    volume, job = of("kuberay_job.yaml")
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert lingraft_options(spec["entrypoint"]) == {"--runs", "--ray"}
    assert spec["entrypoint"].startswith("lingraft run /study/study.yaml --runs /runs")
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in LOCK.splitlines()
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    for pod in pods:
        (container,) = pod["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted.values()) == {one["name"] for one in pod["volumes"]}
        assert {"/runs", "/study", "/dev/shm"} <= set(mounted)
        assert pod["terminationGracePeriodSeconds"] > 30
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1


def test_the_task_of_skypilot_is_recovered_on_another_machine_and_not_repeated_after_an_error() -> None:
    (task,) = of("skypilot.yaml")
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] == 0
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT_CACHED"
    assert task["num_nodes"] == 1
    (line,) = [line for line in task["run"].splitlines() if "lingraft run" in line]
    assert line.startswith("exec "), "else the shell gets the signal and lingraft does not"
    (extra,) = PROJECT["optional-dependencies"]["cuda"]
    assert f'"{extra}"' in task["setup"]


def test_the_image_has_the_python_of_the_lock_and_its_packages() -> None:
    found = instructions()
    (base,) = [value for name, value in found if name == "ARG" and value.startswith("BASE=")]
    (python,) = re.findall(r"python:(\d+\.\d+)-", base)
    assert f"Resolved with Python {python} " in LOCK
    steps = [value for name, value in found if name == "RUN"]
    installs = next(step for step in steps if "requirements.lock" in step)
    assert "-r requirements.lock" in installs
    assert "--no-deps -r requirements-nodeps.lock" in installs
    (extra,) = PROJECT["optional-dependencies"]["cuda"]
    assert any(f"'{extra}'" in step for step in steps)
    assert any("--constraint requirements.lock 'ray[default]'" in step for step in steps), "KubeRay needs it"
    assert steps[-1].endswith(" && make install")


def test_the_image_copies_what_is_there_and_runs_as_nobody_special() -> None:
    found = instructions()
    for value in (value for name, value in found if name == "COPY"):
        for source in [word for word in value.split()[:-1] if not word.startswith("--")]:
            assert (ROOT / source).exists(), source
        assert "--chown=1000:1000" in value
    users = [value for name, value in found if name == "USER"]
    assert users == ["1000:1000"], "Kubernetes' runAsNonRoot takes no name"
    assert ("ENTRYPOINT", '["tini", "--", "lingraft"]') in found
    assert ("VOLUME", "/runs") in found


def test_no_build_of_the_image_runs_the_tests_but_that_of_image_test() -> None:
    assert [name for name, _ in instructions()].count("FROM") == 1, (
        "Docker without BuildKit builds all stages"
    )
    assert instructions("tests/Dockerfile")[-1] == ("RUN", "make test")
    shown = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "image-test", "TORCH=cuda"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines() == [
        "docker build --build-arg TORCH=cuda --tag lingraft:cuda .",
        "docker build --build-arg IMAGE=lingraft:cuda --file tests/Dockerfile .",
    ]


def test_every_step_of_apt_updates_first_and_leaves_no_lists() -> None:
    for name, step in instructions():
        if name == "RUN" and "apt-get install" in step:
            assert step.startswith("apt-get update")
            assert "--no-install-recommends" in step
            assert step.rstrip().endswith("rm -rf /var/lib/apt/lists/*")


def test_no_image_takes_what_git_ignores() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    unsent = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {one.removeprefix("**/") for one in unsent} >= {*ignored, ".git", "shared/"}


def test_no_file_for_clusters_is_taken_for_a_study() -> None:
    for name in cluster_files():
        if name.endswith(".yaml"):
            assert not any(set(one) <= set(Study.model_fields) for one in of(name))
