"""Same case, same numbers; and what torch's deterministic algorithms cost and cannot do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import planning
from bench.facts import DeviceFacts
from bench.request import Request, resolve
from bench.schema import Case
from bench.summary import deterministic_costs
from tests.conftest import TINY, Bench
from tests.records import record

SAME = ("weights_sha256", "first_loss", "last_loss", "last_loss_step", "logits_mean", "logits_std")


def numbers(records: list[dict[str, Any]], task: str) -> set[tuple[Any, ...]]:
    """The different results of a task; one if all are the same bit for bit."""
    return {tuple(r[name] for name in SAME) for r in records if r["task"] == task}


@pytest.mark.slow
def test_same_seed_same_numbers(bench: Bench) -> None:
    """Weights, losses and logits agree bit for bit in forked and fresh workers; a seed differs."""
    case = [*TINY, "--batch-size", "4", "--threads", "2", "--json"]
    forked = bench("run", *case, "--task", "infer,train", "--seed", "42,7").cases
    fresh = bench("run", *case, "--repeats", "2", "--task", "train").cases
    assert [r["worker"] for r in forked + fresh] == ["forked"] * 4 + ["fresh"] * 2
    other = [r for r in forked if r["seed"] == 7]
    same = [r for r in forked + fresh if r["seed"] == 42]
    measured = {
        "infer": {"weights_sha256", "logits_mean", "logits_std"},
        "train": {"weights_sha256", "first_loss", "last_loss"},
    }
    for task, names in measured.items():
        (one,), (another,) = numbers(same, task), numbers(other, task)
        differ = {n for n, a, b in zip(SAME, one, another, strict=True) if a != b}
        assert differ == names


# A loss that adds nothing through `put_`, which torch has no deterministic form for on any device.
SCATTERING = '''"""SGD, with an operation that has no deterministic form."""

import torch

from bench.recipes.sgd import optimizer

LOG_EVERY = 0


def loss(logits, target):
    nothing = torch.zeros(4).put_(torch.tensor([1]), torch.tensor([0.0]))
    return torch.nn.functional.cross_entropy(logits, target) + nothing.sum()
'''


@pytest.mark.slow
def test_deterministic_has_a_twin_a_cost_and_names_what_has_no_such_form(
    bench: Bench, tmp_path: Path
) -> None:
    """A real run with torch's own warning: the sentence, the setting read back, the code."""
    import pandas as pd

    copy = tmp_path / "copy"
    shutil.copytree(Path("bench").resolve(), copy / "bench")
    (copy / "bench" / "recipes" / "scattering.py").write_text(SCATTERING)
    case = [*TINY, "--task", "train", "--batch-size", "4", "--recipe", "sgd,scattering"]
    done = bench("run", *case, "--deterministic", env={"PYTHONPATH": str(copy)})
    assert done.code == 0, done.err
    assert len(re.findall("[Dd]eterministic algorithms cost", done.out)) == 2
    assert "* an operation has no deterministic form" in done.out
    frame = pd.read_parquet(tmp_path / "reports" / "data").query("purpose == 'grid'")
    frame = frame.set_index(["recipe", "deterministic"])
    assert len(frame) == 4
    for (recipe, deterministic), row in frame.iterrows():
        settings = "deterministic_algorithms=True" in row["settings"]
        assert settings == deterministic
        named = deterministic and recipe == "scattering"
        found = row["nondeterministic_operations"]
        assert (found is not None and list(found) == ["put_"]) == named
        assert ("not_deterministic" in row["warnings"]) == named


def test_a_plan_may_ask_for_deterministic_cases_alone(tmp_path: Path) -> None:
    """Then no twin is added; the flag puts one next to each case."""
    plan = tmp_path / "mine.toml"
    plan.write_text("[[cases]]\ndeterministic = [true]\nbatch_size = [1, 2]\n")

    def asked(*, deterministic: bool) -> list[tuple[int, bool]]:
        values = dict.fromkeys(Request.__struct_fields__) | {"plan": str(plan), "axes": {}}
        whole = resolve(Request(**values | {"deterministic": deterministic}))
        cpu = DeviceFacts(device="cpu", kind="cpu", device_class="cpu", device_name="C")
        planned = [p.case for p in planning.expand(whole, [cpu], [], full=False)]
        return [(case.batch_size, case.deterministic) for case in planned]

    assert asked(deterministic=False) == [(1, True), (2, True)]
    assert sorted(asked(deterministic=True)) == [(1, False), (1, True), (2, False), (2, True)]


def test_the_cost_is_a_sentence() -> None:
    """Up to two rounds it has the processes' own interval, from three on the one between them."""
    plain, forced = Case(), Case(deterministic=True)
    (one,) = deterministic_costs([record(plain, 100.0), record(forced, 97.0)])
    # Both within ± 2 %: 97 % x sqrt(2) x 2 % = 2.7 %.
    assert one == (
        "Deterministic algorithms cost 3.0 % ± 2.7 % of the throughput of "
        "resnet50/infer/cpu/eager/fp32/b1/px224 (one process each; processes differ by about 1 %)."
    )
    rounds = [
        record(case, rate, round=number)
        for number, rates in enumerate([(100.0, 98.0), (200.0, 194.0), (100.0, 96.0)], 1)
        for case, rate in zip((plain, forced), rates, strict=True)
    ]
    (three,) = deterministic_costs(rounds)
    # Paired by round: 2, 3 and 4 %; t(2) = 4.303, 4.303 x 1 % / sqrt(3) = 2.5 %.
    assert "cost 3.0 % ± 2.5 % of" in three
    assert "(3 processes each)" in three
    (two,) = deterministic_costs(rounds[:4])
    # As above, of 98 and 97 %: 2.8 and 2.7 %, root of the summed squares over two.
    assert "cost 2.5 % ± 2.0 % of" in two
    vague = record(forced, measurement={"throughput_ci_low": None})
    assert "is not known" in deterministic_costs([record(plain), vague])[0]
    assert deterministic_costs([record(forced), record(plain, status="oom")]) == []
    named = record(forced, measurement={"nondeterministic_operations": ["put_"]})
    (still,) = deterministic_costs([record(plain), named])
    assert still.endswith("about 1 %; not deterministic all the same: put_).")


def test_the_report_sets_a_deterministic_case_against_its_twin(tmp_path: Path) -> None:
    """The speed-up table's usual baseline is the case without; the command measures both."""
    from bench import analysis, store
    from tests.records import write

    write(tmp_path, record(Case(), 100.0), record(Case(deterministic=True), 97.0, number=1))
    rows = analysis.newest(store.read(tmp_path).frame)
    found = {s.row["deterministic"]: s for s in analysis.speedups(rows, None)}
    assert found[True].baseline is not None
    assert found[True].baseline.value == pytest.approx(0.97)
    assert analysis.command(found[True].row) == "bench run --plan one --deterministic"
    assert analysis.command(found[False].row) == "bench run --plan one"
