"""The files that start a night: read by the tools they are for, and their scripts really run."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[1]
WORKFLOW = TOP / ".github/workflows/nightly.yml"
UNITS = TOP / "packaging/systemd"
DOCS = (TOP / "docs/nightly.md").read_text(encoding="utf-8")
FLAGS = {"--plan", "--results", "--out"}
# Stands in for scripts/nightly: says which nights it found, adds one, ends as it is told.
STUB = """#!/bin/sh
set -eu
results=none out=none plan=nightly
while [ $# -gt 0 ]; do
  case $1 in
    --results) results=$2 ;; --out) out=$2 ;; --plan) plan=$2 ;; *) exit 2 ;;
  esac
  shift 2
done
mkdir -p "$results/nightly" "$out"
ls "$results" | tr '\\n' ' ' > "$out/seen.txt"
echo "$plan" > "$results/$NIGHT:0.parquet"
echo "$NIGHT" > "$results/nightly/last.json"
if [ -n "$MERGES" ] && [ -e "$results/$MERGES" ]; then
  mv "$results/$MERGES" "$results/merged.parquet"
fi
exit "$CODE"
"""


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    """The workflow; YAML 1.1 reads the key `on` as true."""
    read: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return read


def script(workflow: dict[Any, Any], job: str, name: str) -> str:
    """What a step runs."""
    (step,) = (s for s in workflow["jobs"][job]["steps"] if s.get("name") == name)
    return str(step["run"])


def test_the_workflow_is_one() -> None:
    """By the schema that GitHub's editors use."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    subprocess.run([*command, "vendor.github-workflows", str(WORKFLOW)], check=True)


def test_actionlint_finds_nothing() -> None:
    """Expressions, contexts, inputs of actions, labels of runners."""
    found = shutil.which("actionlint")
    if found is None:
        pytest.skip("actionlint is not installed (its package on PyPI downloads it from elsewhere)")
    subprocess.run([found, "-color", str(WORKFLOW)], cwd=TOP, check=True)


def test_the_workflow_may_do_little(workflow: dict[Any, Any]) -> None:
    """Least rights, one secret, nights that end, no start by a stranger's pull request."""
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}
    assert workflow["concurrency"] == {"group": "nightly", "cancel-in-progress": False}
    assert workflow["permissions"] == {}
    rights = {name: job["permissions"] for name, job in workflow["jobs"].items()}
    assert rights == {"measure": {"contents": "read"}, "keep": {"contents": "write"}}
    text = WORKFLOW.read_text(encoding="utf-8")
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"BENCH_WEBHOOK_URL"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in actions)
    # Expressions in a script are pasted into it, so that an input could be a command.
    assert not any("${{" in step.get("run", "") for step in steps)
    checkouts = [s["with"] for s in workflow["jobs"]["measure"]["steps"] if "checkout" in str(s)]
    assert all(asked["persist-credentials"] is False for asked in checkouts)


def git(folder: Path, *arguments: str) -> str:
    """A git command that knows nobody's settings."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    command = ["git", *who, "-C", str(folder), *arguments]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def bash(text: str, folder: Path, **env: str) -> int:
    """A step, as GitHub runs it where a workflow names the shell bash."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text]
    values = {"PATH": os.environ["PATH"], "HOME": str(folder), **env}
    return subprocess.run(command, cwd=folder, env=values, check=False).returncode


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository whose branch bench-data is as empty as the documentation makes it."""
    git(tmp_path, "init", "--quiet", "--bare", "origin")
    git(tmp_path, "clone", "--quiet", "origin", "first")
    told = re.search(r"git switch --orphan(.*?)git switch -\n", DOCS, re.DOTALL)
    assert told
    for line in f"git switch --orphan{told[1]}".strip().splitlines():
        git(tmp_path / "first", *shlex.split(line)[1:])
    return tmp_path / "origin"


def one_night(
    workflow: dict[Any, Any],
    origin: Path,
    number: int,
    machines: str,
    code: int,
    merges: str = "",
) -> int:
    """All that the workflow runs, in fresh checkouts; returns how measuring ended."""
    root = origin.parent / f"night{number}"
    ended = 0
    for machine in machines.split():
        work = root / machine
        (work / "scripts").mkdir(parents=True)
        (work / "scripts/nightly").write_text(STUB)
        (work / "scripts/nightly").chmod(0o755)
        git(
            root, "clone", "--quiet", "--branch=bench-data", str(origin), str(work / "data/history")
        )
        env = {"MACHINE": machine, "PLAN": "nightly", "NIGHT": f"n{number}", "CODE": str(code)}
        env["MERGES"] = merges
        ended = bash(script(workflow, "measure", "Measure, judge, tell"), work, **env)
        assert bash(script(workflow, "measure", "Pack what is new"), work) == 0
        shutil.copytree(work / "data/out", root / f"temp/nights/night-{machine}")
    git(root, "clone", "--quiet", "--branch=bench-data", str(origin), "keep")
    keep = script(workflow, "keep", "Add the night to the branch")
    assert bash(keep, root / "keep", RUNNER_TEMP=str(root / "temp")) == 0
    return ended


def kept(origin: Path) -> list[str]:
    return git(origin, "ls-tree", "-r", "-z", "--name-only", "bench-data").split("\0")[:-1]


def test_the_history_goes_from_night_to_night(workflow: dict[Any, Any], origin: Path) -> None:
    """Red nights too; each machine finds its own nights, and a kept file can change."""
    assert one_night(workflow, origin, 1, "gpu cpu", 3) == 0
    assert one_night(workflow, origin, 2, "gpu cpu", 1) == 1
    assert one_night(workflow, origin, 3, "gpu", 0) == 0
    seen = [origin.parent / f"night{n}/gpu/data/out/seen.txt" for n in (1, 2, 3)]
    assert [p.read_text().split() for p in seen] == [
        ["nightly"],
        ["n1:0.parquet", "nightly"],
        ["n1:0.parquet", "n2:0.parquet", "nightly"],
    ]
    gpu = ["gpu/n1:0.parquet", "gpu/n2:0.parquet", "gpu/n3:0.parquet", "gpu/nightly/last.json"]
    assert kept(origin) == ["cpu/n1:0.parquet", "cpu/n2:0.parquet", "cpu/nightly/last.json", *gpu]
    assert git(origin, "show", "bench-data:gpu/nightly/last.json") == "n3\n"
    assert git(origin, "rev-list", "--count", "bench-data") == "4\n"


def test_only_what_a_night_added_travels(workflow: dict[Any, Any], origin: Path) -> None:
    """And a night that added nothing, or never began, leaves the branch as it was."""
    one_night(workflow, origin, 1, "gpu", 0)
    one_night(workflow, origin, 2, "gpu", 0)
    packed = origin.parent / "night2/temp/nights/night-gpu/night.tar.gz"
    listed = subprocess.run(["tar", "-tzf", packed], check=True, capture_output=True, text=True)
    assert sorted(listed.stdout.split()) == ["gpu/n2:0.parquet", "gpu/nightly/last.json"]
    before = git(origin, "rev-parse", "bench-data")
    (origin.parent / "night3").mkdir()
    one_night(workflow, origin, 3, "", 0)
    assert git(origin, "rev-parse", "bench-data") == before


def test_what_a_night_merged_leaves_the_branch(workflow: dict[Any, Any], origin: Path) -> None:
    one_night(workflow, origin, 1, "gpu", 0)
    one_night(workflow, origin, 2, "gpu cpu", 0, merges="n1:0.parquet")
    assert "gpu/n1:0.parquet" not in kept(origin)
    assert {"gpu/merged.parquet", "gpu/n2:0.parquet", "cpu/n2:0.parquet"} <= set(kept(origin))


@pytest.mark.parametrize(("code", "ended"), [(0, 0), (1, 1), (2, 2), (3, 0), (4, 4)])
def test_how_a_night_ends(workflow: dict[Any, Any], origin: Path, code: int, ended: int) -> None:
    """Red fails the job, nothing to judge does not, and neither is lost."""
    assert one_night(workflow, origin, 1, "cpu", code) == ended
    assert kept(origin) == ["cpu/n1:0.parquet", "cpu/nightly/last.json"]


class Unit(configparser.RawConfigParser):
    """A unit of systemd; its keys are case-sensitive."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=True, interpolation=None)
        self.read(UNITS / name, encoding="utf-8")

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify`, with the checkout where the test has it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/nightly").write_text(STUB)
    (tmp_path / "scripts/nightly").chmod(0o755)
    for path in UNITS.glob("bench-nightly.*"):
        text = path.read_text(encoding="utf-8").replace("/opt/resnet-bench", str(tmp_path))
        (tmp_path / path.name).write_text(text)
    units = [tmp_path / "bench-nightly.service", tmp_path / "bench-nightly.timer"]
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "bench-nightly" in line]
    assert (done.returncode, ours) == (0, [])
    when = Unit("bench-nightly.timer")["Timer"]["OnCalendar"]
    subprocess.run(["systemd-analyze", "calendar", when], check=True, capture_output=True)


def test_the_units_do_not_lower_what_is_measured() -> None:
    """No priority, no limit; a missed night is made up for; only a red one is a failure."""
    service = Unit("bench-nightly.service")["Service"]
    lowering = r"Nice|CPU.*|.*CPUs|IO.*|BlockIO.*|Memory.*|Allowed.*|Tasks.*|Limit.*|OOM.*|Slice"
    assert not [key for key in service if re.fullmatch(lowering, key)]
    assert service["Type"] == "oneshot"
    assert service["SuccessExitStatus"] == "3"
    assert service["EnvironmentFile"].startswith("-")
    timer = Unit("bench-nightly.timer")
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"


def crontab() -> str:
    found = re.search(r"```crontab\n(.*)\n```", DOCS)
    assert found
    return found[1]


def test_everything_calls_the_script_with_its_flags(workflow: dict[Any, Any]) -> None:
    """A flag that does not exist would fail at three in the morning."""
    unit = Unit("bench-nightly.service")["Service"]["ExecStart"]
    step = script(workflow, "measure", "Measure, judge, tell")
    calls = re.findall(r"scripts/nightly [^`>\n]*", "\n".join([unit, step, DOCS]))
    assert len(calls) == 4
    for call in calls:
        used = re.findall(r"--\w+", call)
        assert {"--results", "--out"} <= set(used) <= FLAGS, call


def test_the_script_has_the_flags() -> None:
    """Those that the files above call it with."""
    sources = [p for p in (TOP / "scripts").glob("nightly*") if p.is_file()]
    if not sources:
        pytest.skip("there is no scripts/nightly yet")
    text = "".join(p.read_text(encoding="utf-8") for p in sources)
    assert all(flag in text for flag in FLAGS)


def test_the_line_for_cron() -> None:
    """Five fields, then a command without a bare percent sign, which cron takes for a newline."""
    fields = crontab().split(maxsplit=5)
    assert all(re.fullmatch(r"\d+|\*", field) for field in fields[:5])
    assert "%" not in crontab()
    subprocess.run(["bash", "-n", "-c", fields[5]], check=True)


def test_the_documentations_links_lead_somewhere() -> None:
    """Files it names exist."""
    for target in re.findall(r"\]\(([^)#:]+)\)", DOCS):
        assert (TOP / "docs" / target).exists(), target
