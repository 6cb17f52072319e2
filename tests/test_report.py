"""The report: what it says, what it never says, and that it needs nothing from outside."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from bench import analysis, store, summary
from bench.errors import NothingToReport, WrongUse
from bench.facts import DeviceState, Environment
from bench.report import make
from bench.schema import BUDGETS, Case
from tests.conftest import Bench
from tests.records import record, write

JOB = {
    "task": "train",
    "batch_size": 64,
    "image_size": 32,
    "classes": 10,
    "loader_workers": 0,
    "recipe": "adam",
    "epochs": 10,
    "memory_format": "contiguous",
    "data": "folder:cifar",
}
PROJECTED = {
    "epoch_images": 50_000,
    "projected_s": 3000.0,
    "projected_ci_low_s": 2900.0,
    "projected_ci_high_s": 3100.0,
}
ON_GPU = {
    "epoch_images": 50_000,
    "projected_s": 75.0,
    "projected_ci_low_s": 74.0,
    "projected_ci_high_s": 76.0,
}


def page(tmp_path: Path, *records: object) -> str:
    write(tmp_path / "data", *records)  # type: ignore[arg-type]
    return make(tmp_path / "data", tmp_path / "out").path.read_text()


def test_the_page_is_self_contained_and_escapes(tmp_path: Path) -> None:
    """No reference to another file or host; text from records is text."""
    evil = record(status="failed", reason="<script>alert(1)</script>", log="</pre><b>")
    html = page(tmp_path, record(Case(batch_size=8)), evil)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "</pre><b>" not in html
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)


def test_one_device_names_the_command_for_the_other(tmp_path: Path) -> None:
    """The headline is labelled projected and keeps the published figures apart."""
    write(tmp_path / "data", record(Case(**JOB), measurement=PROJECTED))
    made = make(tmp_path / "data", tmp_path / "out")
    assert "3,000 s ± 100 s (projected) on Test CPU" in made.headline
    assert "The article published 72 s for an A100 and 2,200 s" in made.headline
    assert "bench run --plan article --device cuda" in made.headline
    assert (tmp_path / "out" / "article.png").is_file()


def test_two_devices_give_the_ratio(tmp_path: Path) -> None:
    """Measured against measured, never against published."""
    gpu = Case(**JOB, device="cuda:0")
    write(
        tmp_path / "data",
        record(Case(**JOB), measurement=PROJECTED),
        record(gpu, measurement=ON_GPU),
    )
    headline = make(tmp_path / "data", tmp_path / "out").headline
    assert "40.0 times" in headline


def test_another_data_set_is_not_the_articles_job(tmp_path: Path) -> None:
    """Ten epochs of a few images of one's own do not stand beside 72 s and 2,200 s."""
    few = record(Case(**JOB), measurement=PROJECTED | {"epoch_images": 300})
    write(tmp_path / "data", few)
    assert "has not been measured here" in make(tmp_path / "data", tmp_path / "out").headline


def test_a_trained_job_goes_before_a_projected_one_and_the_newest_first(tmp_path: Path) -> None:
    """Three records of one device: an old projection, a new one, a training in between."""
    trained = {"train_s": 2500.0, "epoch_images": 50_000}
    full = record(Case(**JOB, full=True), measurement=trained, number=1)
    slow = {"projected_s": 9e3, "projected_ci_low_s": 8.9e3, "projected_ci_high_s": 9.1e3}
    old = record(Case(**JOB, threads=1), measurement=PROJECTED | slow)
    new = record(Case(**JOB), measurement=PROJECTED, number=2)
    write(tmp_path / "a", old, new)
    assert "3,000 s" in make(tmp_path / "a", tmp_path / "out").headline
    write(tmp_path / "b", old, full, new)
    assert "2,500 s (trained in full)" in make(tmp_path / "b", tmp_path / "out").headline


def test_a_simulated_gpu_is_in_no_headline_and_no_chart(tmp_path: Path) -> None:
    """It is listed, marked, and nothing else."""
    gpu = Case(**JOB, device="cuda:0")
    simulated = record(gpu, measurement=ON_GPU, simulated=True)
    html = page(tmp_path, record(Case(**JOB), measurement=PROJECTED), simulated)
    headline = html.split('class="headline">')[1].split("</p>")[0]
    assert "75 s" not in headline
    assert "SIMULATED, not a measurement" in html
    speedups = html.split("<h2>Speed-up</h2>")[1].split("<h2>")[0]
    assert "cuda" not in speedups


def test_the_environment_is_told_with_units_and_wraps(tmp_path: Path) -> None:
    """Facts with their units, yes and no; what is not known is named once."""
    environment = Environment(
        bench_version="0",
        cpu_model="Test CPU",
        memory_bytes=2**34,
        smt=False,
        git_dirty=True,
        cpu_frequency_max_mhz=2600.0,
        environment_variables=["OMP_PLACES=" + "0" * 300],
    )
    state = DeviceState(power_limit_w=250.0, ecc=True)
    # Another machine beside it that knows next to nothing makes every column nullable.
    other = record(Case(batch_size=2), software_fingerprint="other")
    html = page(tmp_path, other, record(environment=environment, device_state=state, number=1))
    facts = html.split("<h2>Environment</h2>")[1].split("</table>")[0]
    rows = dict(re.findall(r'<tr><th>(.*?)</th><td class="fact">(.*?)</td>', facts))
    assert rows["memory"] == "16.0 GiB"
    assert rows["power limit"] == "250 W"
    assert rows["cpu frequency max"] == "2600 MHz"
    assert (rows["SMT"], rows["ECC"], rows["uncommitted changes"]) == ("no", "yes", "yes")
    assert "kernel" in rows["not known, or none"]
    assert "kernel" not in rows
    assert "td.fact { overflow-wrap: anywhere; }" in html


def test_every_status_has_its_row_and_reason(tmp_path: Path) -> None:
    """A planned case never vanishes from the report."""
    statuses = ["measured", "skipped", "oom", "failed", "timeout"]
    made = [record(Case(batch_size=n), status=s) for n, s in enumerate(statuses, 1)]
    html = page(tmp_path, *made)
    table = html.split("<h2>Every case</h2>")[1].split("</table>")[0]
    for number, status in enumerate(statuses, 1):
        assert f"/b{number}/" in table
        assert f'class="{status}"' in table


def test_the_newest_run_of_a_case_is_shown(tmp_path: Path) -> None:
    """Also when the newest failed: an old good number must not hide it."""
    old = record(rate=50.0, number=1)
    new = record(status="failed", number=2, run_id="20260102T000000Z-bbbbbb")
    rows = analysis.newest(store.read(write(tmp_path, old, new)).frame)
    assert list(rows["status"]) == ["failed"]


def test_rounds_become_one_row_with_the_spread_between_processes(tmp_path: Path) -> None:
    """Three rounds: mean and a t interval over processes; two: no interval."""
    three = [record(rate=r, round=n, number=n) for n, r in enumerate((99.0, 100.0, 101.0), 1)]
    row = analysis.newest(store.read(write(tmp_path / "a", *three)).frame).iloc[0]
    assert row["throughput_images_per_s"] == pytest.approx(100)
    assert row["throughput_ci_high"] == pytest.approx(100 + 4.3027 / 3**0.5, abs=0.05)
    two = analysis.newest(store.read(write(tmp_path / "b", *three[:2])).frame).iloc[0]
    assert two["throughput_ci_low"] != two["throughput_ci_low"]  # NaN


def test_a_failed_round_is_not_hidden_by_the_others(tmp_path: Path) -> None:
    """The row is the failed one's and says how many rounds were measured."""
    rounds = [
        record(rate=99.0, round=1),
        record(status="failed", round=2, number=1),
        record(rate=101.0, round=3, number=2),
    ]
    row = analysis.newest(store.read(write(tmp_path, *rounds)).frame).iloc[0]
    assert row["status"] == "failed"
    assert row["reason"].endswith("(2 of 3 rounds were measured)")


def test_speedups_name_their_baseline_and_the_best_fp32(tmp_path: Path) -> None:
    """INT8 against the same engine's fp32, and against the best fp32 of the machine."""
    slow = record(Case(memory_format="contiguous"), 8.0)
    best = record(Case(), 10.0, number=1)
    int8 = record(Case(precision="int8"), 20.0, number=2)
    rows = analysis.newest(store.read(write(tmp_path, slow, best, int8)).frame)
    found = {s.row["precision"] + s.row["memory_format"]: s for s in analysis.speedups(rows, None)}
    int8_found = found["int8channels_last"]
    assert int8_found.baseline is not None
    assert int8_found.baseline.value == pytest.approx(2.0)
    other = analysis.speedups(rows, "precision=fp32,memory_format=contiguous")
    assert [s.baseline.value for s in other if s.baseline] == pytest.approx([1.0, 1.25, 2.5])
    assert all(s.best_fp32 and s.best_fp32.other_id == Case().case_id for s in other)


def test_wrong_baselines_are_sentences(tmp_path: Path) -> None:
    """Unknown field, wrong form, nothing matching."""
    write(tmp_path / "data", record())
    for selector in ("speed=fast", "fp32", "precision=tf32"):
        with pytest.raises(WrongUse):
            make(tmp_path / "data", tmp_path / "out", selector)


@pytest.mark.parametrize(
    "selector", ["loader_workers=0", "epochs=10", "full=false", "batch_size=64"]
)
def test_a_baseline_may_name_any_field(tmp_path: Path, selector: str) -> None:
    """Numbers that can be null and booleans are written as on the command line."""
    write(tmp_path / "data", record(Case(**JOB)))
    make(tmp_path / "data", tmp_path / "out", selector)


def test_lines_of_unlike_cases_are_not_joined(tmp_path: Path) -> None:
    """Two thread counts are two lines of the throughput chart."""
    from bench.charts import throughput

    cases = [Case(batch_size=b, threads=t) for t in (1, 2) for b in (1, 8)]
    frame = store.read(write(tmp_path, *(record(c) for c in cases))).frame
    figure = throughput.draw(analysis.newest(frame))
    assert figure is not None
    assert len(figure.axes[0].get_legend_handles_labels()[1]) == 2


def test_nothing_to_report_is_exit_3(bench: Bench, tmp_path: Path) -> None:
    """No folder, or no record in it."""
    assert bench("report").code == 3
    (tmp_path / "reports" / "data").mkdir(parents=True)
    done = bench("report")
    assert done.code == 3
    assert "bench run" in done.err
    with pytest.raises(NothingToReport):
        make(tmp_path / "none", tmp_path / "out")


def test_the_command_of_a_row_measures_the_same_case(bench: Bench, tmp_path: Path) -> None:
    """What the report prints under `Run it again` plans exactly that case."""
    case = Case(**{**JOB, "data": "synthetic", "threads": 1})
    rows = analysis.newest(store.read(write(tmp_path / "x", record(case))).frame)
    command = analysis.command(rows.to_dict("records")[0])
    done = bench(*shlex.split(command)[1:], "--dry-run")
    assert done.out.split()[0] == case.case_id


def test_the_command_quotes_and_keeps_the_budget(tmp_path: Path) -> None:
    """A folder with a blank, and a budget of one's own."""
    budget = msgspec.structs.replace(BUDGETS["quick"], name="custom", max_seconds=30.0)
    made = record(Case(task="train", data="folder:my images", loader_workers=2), budget=budget)
    rows = analysis.newest(store.read(write(tmp_path, made)).frame)
    command = analysis.command(rows.to_dict("records")[0])
    assert "--data 'folder:my images'" in command
    assert "--max-seconds 30" in command


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_opens_it_without_a_console_message(tmp_path: Path) -> None:
    """Headless Chromium, no network: the page renders and the console stays empty."""
    page(tmp_path, record(Case(**JOB), measurement=PROJECTED), record(Case(batch_size=8)))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        f"--screenshot={tmp_path / 'shot.png'}", f"file://{tmp_path / 'out' / 'index.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (tmp_path / "shot.png").stat().st_size > 10_000
    assert ":CONSOLE" not in done.stderr


def test_rounds_show_the_spread_between_processes(tmp_path: Path) -> None:
    """Next to the interval within one: 2 % against 2 %."""
    rates = enumerate((98.0, 100.0, 102.0), start=1)
    text = page(tmp_path, *(record(rate=rate, round=n, number=n) for n, rate in rates))
    assert "Between processes and within" in text
    row = text[text.index("Between processes and within") :]
    assert ">3<" in row
    assert ">2.0 %<" in row
    assert "± 5.0 %" in row  # 4.303 x 2 % / sqrt(3)
    assert "Between processes and within" not in page(tmp_path / "one", record())


def test_the_table_of_rounds_counts_those_measured() -> None:
    """One row a case: mean, spread between processes, interval within one; lost rounds show."""
    rounds = [record(rate=rate, round=n) for n, rate in enumerate((98.0, 102.0), start=1)]
    lost = [record(Case(batch_size=8), round=1), record(Case(batch_size=8), status="oom", round=2)]
    out = io.StringIO()
    summary.table([*rounds, *lost], out)
    first, second = out.getvalue().splitlines()[1:]
    assert " ".join(first.split()[1:]) == "100 – 2.8 % ± 2.0 % – 2 of 2 measured"
    assert " ".join(second.split()[1:]) == "100 – – ± 2.0 % – 1 of 2 measured"


def test_a_number_without_an_interval_never_stands_bare(tmp_path: Path) -> None:
    """Neither in the headline nor as a ratio: others disturbed it, and that is said."""
    bare = PROJECTED | {"projected_ci_low_s": None, "projected_ci_high_s": None}
    disturbed = record(
        Case(**JOB), measurement=bare | {"throughput_ci_low": None}, warnings=["contaminated"]
    )
    slow = record(Case(batch_size=8), 10.0, measurement={"throughput_ci_low": None})
    fast = record(Case(batch_size=8, precision="int8"), 40.0)
    html = page(tmp_path, disturbed, slow, fast)
    assert "3,000 s (projected; no interval: others disturbed most of it)" in html
    assert "4.00 ± ?" in html


SEARCHED = {"purpose": "search", "run_id": "20260101T000000Z-aaaaaa"}


def searched(tmp_path: Path, *records: object) -> list[str]:
    """What the report says of the searches in these records."""
    write(tmp_path, *records)  # type: ignore[arg-type]
    frame = store.read(tmp_path).frame
    return analysis.largest_batches(frame, set(frame["run_id"]))


def test_a_search_says_what_fits_and_what_is_fastest(tmp_path: Path) -> None:
    """The short tries count for what fits, not for speed."""
    (said,) = searched(
        tmp_path,
        record(Case(batch_size=1), 10.0, **SEARCHED),
        record(Case(batch_size=2), 30.0, **SEARCHED),
        record(Case(batch_size=4), status="oom", **SEARCHED),
        record(Case(batch_size=3), 99.0, **(SEARCHED | {"purpose": "fit"})),
    )
    assert "the largest batch that fits is 3 (4: oom)" in said
    assert "the fastest of 1, 2 is 2 with 30.0 images/s" in said


def test_a_search_that_ended_otherwise_claims_nothing(tmp_path: Path) -> None:
    """A timeout says nothing of memory; a simulated search is marked; one may find no speed."""
    (late,) = searched(
        tmp_path / "late",
        record(Case(batch_size=4), 10.0, **SEARCHED),
        record(Case(batch_size=8), status="timeout", **SEARCHED),
    )
    assert "a batch of 4 fits; the search ended at 8 (timeout)" in late
    (only_fit,) = searched(
        tmp_path / "fit",
        record(Case(task="train", batch_size=2), status="oom", simulated=True, **SEARCHED),
        record(Case(task="train"), 9.0, simulated=True, **(SEARCHED | {"purpose": "fit"})),
    )
    assert only_fit.startswith("SIMULATED, not a measurement: ")
    assert "fits is 1 (2: oom)" in only_fit
    assert "fastest" not in only_fit


def test_a_try_of_a_search_is_no_round_of_the_case(tmp_path: Path) -> None:
    """The same case in the grid and in a search: the grid's number stands alone."""
    write(tmp_path, record(Case(), 100.0), record(Case(), 50.0, **SEARCHED))
    rows = analysis.newest(store.read(tmp_path).frame)
    assert rows["throughput_images_per_s"].tolist() == [100.0]
    assert rows["spread"].isna().all()


def test_the_int8_table_says_where_one_process_decides_nothing(tmp_path: Path) -> None:
    """Beside each ratio, and in the verdict."""
    plain = record(Case(), 10.0)
    html = page(tmp_path, plain, record(Case(precision="int8"), 25.0, number=1))
    table = html.split("<h2>INT8</h2>")[1].split("</table>")[0]
    assert table.count('<span class="soft">in one process</span>') == 2
    assert "in one process 2.50 ± 0.07, inconclusive; --repeats 3 of both decides" in table
    assert ": holds" not in table


def test_the_engine_charts_names_only_what_is_unusual() -> None:
    from bench.charts import engines

    row = {**analysis.DEFAULTS, "engine": "openvino", "precision": "int8"}
    assert engines._label(row) == "openvino int8"
    unusual = {"memory_format": "contiguous", "calibration_images": 256}
    assert engines._label(row | unusual) == "openvino int8 contiguous 256"
