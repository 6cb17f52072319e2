"""Plans: product, flags, fixed grids, classes of devices. No torch, no process."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import planning
from bench.facts import DeviceFacts
from bench.schedules import Grid, LargestBatch, Schedule, Several
from bench.schema import BUDGETS, Case, Key, Status, Trial, Tried

CPU = DeviceFacts(device="cpu", kind="cpu", device_class="cpu", device_name="C")
GPU = DeviceFacts(device="cuda:0", kind="cuda", device_class="gpu", device_name="G")


def cases(plan: planning.Plan, *devices: DeviceFacts, absent: tuple[str, ...] = ()) -> list[Case]:
    return [p.case for p in planning.expand(plan, list(devices), list(absent), full=False)]


def test_quick_takes_batch_sizes_by_class_of_device() -> None:
    """CPU 1 and 8; GPU 1, 64 and 256; and the article's job on both."""
    found = cases(planning.load("quick"), CPU, GPU)
    sizes = {d: {c.batch_size for c in found if c.device == d and c.epochs is None} for d in
             ("cpu", "cuda:0")}  # fmt: skip
    assert sizes == {"cpu": {1, 8}, "cuda:0": {1, 64, 256}}
    article = [c for c in found if c.epochs]
    assert [c.device for c in article] == ["cpu", "cuda:0"]
    assert {(c.recipe, c.batch_size, c.memory_format, c.data) for c in article} == {
        ("adam", 64, "contiguous", "synthetic")
    }
    assert all(c.memory_format == "channels_last" for c in found if c.epochs is None)


def test_flags_replace_axes_and_drop_a_contradicted_fixed_grid() -> None:
    """`--precision fp32,amp,int8 --batch-size 1,8 --task infer` is exactly six cases."""
    flags = {"precision": ["fp32", "amp", "int8"], "batch_size": [1, 8], "task": ["infer"]}
    found = cases(planning.override(planning.load("quick"), flags), CPU)
    assert len(found) == 6
    assert len({c.case_id for c in found}) == 6
    kept = cases(planning.override(planning.load("quick"), {"task": ["train"]}), CPU)
    assert any(c.epochs for c in kept)


def test_a_named_precision_is_measured_even_if_emulated() -> None:
    """Only the plan's own choice is skipped on a CPU without bf16 units."""
    plan = planning.load("quick")
    planned = planning.expand(plan, [CPU], [], full=False)
    assert {p.case.precision for p in planned if p.skip_emulated} == {"amp"}
    named = planning.override(plan, {"precision": ["amp"]})
    assert not any(p.skip_emulated for p in planning.expand(named, [CPU], [], full=False))


def test_an_absent_device_keeps_its_cases() -> None:
    """They become skipped records, not nothing."""
    plan = planning.override(planning.load("quick"), {"device": ["cuda"]})
    found = cases(plan, absent=("cuda",))
    assert {c.device for c in found} == {"cuda"}
    assert {c.batch_size for c in found} >= {1, 64, 256}


def test_real_images_come_through_a_loader() -> None:
    """Without a word about workers there are two; synthetic images need none."""
    flags = {"data": ["cifar10", "synthetic"], "task": ["train"]}
    plan = planning.override(planning.load("one"), flags)
    assert {c.data: c.loader_workers for c in cases(plan, CPU)} == {"cifar10": 2, "synthetic": None}


def test_whole_epochs_come_through_a_loader_and_only_in_training() -> None:
    """Synthetic images too; inference has neither epochs nor a loader."""
    flags = {"task": ["train", "infer"], "epochs": [2]}
    train, infer = cases(planning.override(planning.load("one"), flags), CPU)
    assert (train.epochs, train.loader_workers) == (2, 0)
    assert (infer.epochs, infer.loader_workers) == (None, None)


def test_only_int8_is_calibrated_and_inference_has_no_recipe_but_the_one_for_int8() -> None:
    """What a case does not use does not make another case of it."""
    flags = {
        "task": ["train", "infer"], "precision": ["fp32", "int8"],
        "recipe": ["sgd", "qat"], "calibration_images": [64],
    }  # fmt: skip
    found = cases(planning.override(planning.load("one"), flags), CPU)
    infer = {(c.precision, c.recipe, c.calibration_images) for c in found if c.task == "infer"}
    assert infer == {("fp32", "sgd", 32), ("int8", "sgd", 64), ("int8", "qat", 64)}
    assert {c.calibration_images for c in found if c.task == "train"} == {32}
    assert len([c for c in found if c.task == "infer"]) == 3


def test_a_grid_without_a_device_takes_every_device() -> None:
    """Also beside a grid that names one."""
    named, other = planning.Block({"device": ["cuda"]}), planning.Block({"batch_size": [2]})
    plan = planning.Plan("p", [named, other], BUDGETS["quick"])
    assert planning.asked_devices(plan) == (["cuda"], True)
    found = cases(plan, CPU, GPU)
    assert {(c.device, c.batch_size) for c in found} == {("cuda:0", 1), ("cpu", 2), ("cuda:0", 2)}


def test_a_changed_budget_is_custom_and_leaves_room() -> None:
    """A longer measurement is never killed by the shorter one's timeout."""
    budget = planning.changed(BUDGETS["quick"], {"max_seconds": 300.0, "latency_seconds": 300.0})
    assert budget.name == "custom"
    assert budget.timeout_s >= 1800
    assert planning.changed(BUDGETS["quick"], {"timeout_s": 5.0}).timeout_s == 5.0
    assert planning.changed(BUDGETS["quick"], {}) is BUDGETS["quick"]


def test_the_article_as_printed_and_tuned() -> None:
    """Same seed and job; what differs is the layout, the fused optimizer and the workers."""
    printed, tuned = cases(planning.load("article"), CPU)
    different = {f for f in Case.__struct_fields__ if getattr(printed, f) != getattr(tuned, f)}
    assert different == {"memory_format", "recipe", "loader_workers"}


def test_the_hash_names_the_work() -> None:
    """Same cases, budget and rounds: same hash; a change of any: another."""
    some, quick = [Case(), Case(batch_size=2)], BUDGETS["quick"]
    first = planning.plan_hash(some, quick, 1)
    assert planning.plan_hash(list(some), quick, 1) == first
    others = [(some[:1], quick, 1), (some, BUDGETS["strict"], 1), (some, quick, 2)]
    assert first not in {planning.plan_hash(*o) for o in others}


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_a_grid_runs_every_case_once_a_round_interleaved(
    count: int, repeats: int, data: st.DataObject
) -> None:
    """From any interruption on, exactly the rest is left, in order 1 2 3 1 2 3."""
    grid = Grid([Case(batch_size=n) for n in range(1, count + 1)], repeats)
    whole = grid.trials()
    assert [t.case.batch_size for t in whole] == list(range(1, count + 1)) * repeats
    keys = data.draw(st.sets(st.sampled_from([t.key for t in whole])))
    done = {key: Tried(status="measured", batch_size=1) for key in keys}
    left = run_through(grid, done)
    assert len(done) == count * repeats == grid.length(done)
    assert [t.round for t in left] == sorted(t.round for t in left)
    guarded = run_through(Several([grid], guarded=True), {})
    assert guarded[1:-1] == whole
    assert {t.purpose for t in (guarded[0], guarded[-1])} == {"sentinel"}


def run_through(
    schedule: Schedule, done: dict[Key, Tried], ends: Callable[[int], Status] = lambda _: "measured"
) -> list[Trial]:
    """All tries a schedule wants; `ends` says how a batch size ends."""
    wanted = []
    while (trial := schedule.next(done)) is not None:
        wanted.append(trial)
        size = trial.case.batch_size
        assert trial.key not in done, "the same try again"
        done[trial.key] = Tried(status=ends(size), batch_size=size)
    return wanted


@given(st.integers(1, 5000), st.none() | st.integers(1, 5000), st.sampled_from([1, 2]))
def test_the_largest_batch_that_fits_is_found(limit: int, ceiling: int | None, start: int) -> None:
    """Doubling, then bisection; nothing beyond the ceiling is ever tried."""
    done: dict[Key, Tried] = {}
    search = LargestBatch(Case(batch_size=start), 300.0, ceiling)
    tries = run_through(search, done, lambda size: "measured" if size <= limit else "oom")
    fits = [t.batch_size for t in done.values() if t.status == "measured"]
    assert max(fits, default=0) == min(limit, ceiling or limit)
    sizes = [t.case.batch_size for t in tries]
    assert max(sizes) <= (ceiling or 2 * limit + 2)
    assert len(sizes) == len(set(sizes)) <= 2 * math.log2(limit + 1) + 4
    doubled = [t.case.batch_size for t in tries if t.purpose == "search"]
    assert doubled == sorted(doubled)


def test_a_search_ends_where_memory_is_not_the_reason() -> None:
    """A failure says nothing of memory; a refusal of the first size is one of all."""
    for status in ("failed", "timeout"):
        ends = {1: "measured", 2: "measured", 4: status}
        tries = run_through(LargestBatch(Case(), 300.0), {}, lambda size: ends[size])  # type: ignore[return-value]  # noqa: B023
        assert [t.case.batch_size for t in tries] == [1, 2, 4]
    refused = run_through(LargestBatch(Case(batch_size=2), 300.0), {}, lambda _: "skipped")
    assert [t.case.batch_size for t in refused] == [2]


def test_auto_is_a_batch_size_for_a_search() -> None:
    """Beside numbers; training begins at two images, as BatchNorm needs on small ones."""
    plan = planning.override(
        planning.load("one"), {"batch_size": ["auto", 4], "task": ["infer", "train"]}
    )
    planned = planning.expand(plan, [CPU], [], full=False)
    assert {(p.case.task, p.case.batch_size) for p in planned if p.search} == {
        ("infer", 1),
        ("train", 2),
    }
    assert {p.case.batch_size for p in planned if not p.search} == {4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[cases]]\nbatch_size = [0]", "at least 1, not 0"),
        ("[[cases]]\nbatch_size = { tpu = [1] }", "unknown key 'tpu'"),
        ("[[cases]]\nbatch_size = []", "at least one value"),
        ("[[cases]]\nprecision = ['fp33']", "did you mean 'fp32'"),
        ("[[cases]]\nbatch_size = [true]", "whole number"),
        ("[[cases]]\ncudnn_benchmark = ['yes']", "true or false"),
        ("[[cases]]\ndeterministic = [1]", "true or false"),
        ("budget = 'fast'\n[[cases]]", "budget 'fast'"),
        ("[budget_overrides]\nspeed = 1\n[[cases]]", "unknown key 'speed'"),
        ("[budget_overrides]\nmax_seconds = 'long'\n[[cases]]", "budget_overrides"),
        ("budget = 'quick'", "at least one [[cases]]"),
        ("repeats = 0\n[[cases]]", "at least 1, not 0"),
        ("cases = 3", "at least one [[cases]]"),
        ("speed = 1\n[[cases]]", "unknown key 'speed'"),
        ("budget = ['quick']\n[[cases]]", "no budget"),
        ("[[cases]]\nbatch_size = {}", "expected a list"),
        ("[[cases]]\ndevice = { gpu = ['cuda'] }", "expected a list"),
        ("[[cases]]\nfixed = 'no'", "expected true or false"),
        ("[[cases]]\nseed = 9223372036854775808", "too large"),
        ("[budget_overrides]\nmin_samples = 0\n[[cases]]", "min_samples must be 8 or more"),
        ("[budget_overrides]\nmax_seconds = -1.0\n[[cases]]", "max_seconds must be"),
        ("[budget_overrides]\nfidelity_images = -1\n[[cases]]", "fidelity_images must be 0"),
        ("[budget_overrides]\ntarget_ci = 2.0\n[[cases]]", "a share between 0 and 1"),
    ],
)
def test_mistakes_in_a_plan_are_sentences(tmp_path: Path, text: str, said: str) -> None:
    """Each names the file and what is wrong."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(planning.WrongUse, match=re.escape(said)):
        planning.load(str(path))
