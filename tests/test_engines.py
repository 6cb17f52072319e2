"""Engines: the same work, the same answer, or no number."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Bench

pytestmark = pytest.mark.slow
TOP = Path(__file__).parents[1]

WRONG = '''"""Eager, but off by one."""

from bench.engines.eager.float import MODULES, Eager, refuses


class Wrong(Eager):
    def __call__(self, images):
        return super().__call__(images) + 1


build = Wrong
'''


OFF = '''"""Eager, but what it answers is twice too large; it trains for INT8."""

from bench.engines.eager.float import MODULES, Eager, refuses

CONVERTS_QAT = True


class Off(Eager):
    def __call__(self, images):
        return 2 * super().__call__(images)


build = Off
'''

STALE = '''"""Eager, but whatever it is asked, it answers what it was asked first."""

from bench.engines.eager.float import MODULES, Eager, refuses


class Stale(Eager):
    first = None

    def __call__(self, images):
        if self.first is None:
            self.first = super().__call__(images)
        return self.first


build = Stale
'''

QUEUE = '''"""Eager, with a queue in which every other request is answered as the one before."""

from bench.engines.eager.float import MODULES, Eager, refuses


class Queue(Eager):
    def enqueue(self, images):
        self(images)

    def wait(self):
        pass

    def queued(self, images):
        return [self(images), self(-2 * images)]


build = Queue
'''


WARY = '''"""Eager, but it takes 50 ms over a tensor that it has not met."""

import time

from bench.engines.eager.float import MODULES, Eager, refuses


class Wary(Eager):
    met = None

    def __call__(self, images):
        if images is not self.met:
            time.sleep(0.05)
            self.met = images
        return super().__call__(images)


build = Wary
'''


BUSY = '''"""Eager, with a queue whose requests take 50 ms each, one after another."""

import time

from bench.engines.eager.float import MODULES, Eager, refuses


class Busy(Eager):
    idle = 0.0

    def enqueue(self, images):
        self.idle = max(self.idle, time.perf_counter()) + 0.05

    def wait(self):
        time.sleep(max(0.0, self.idle - time.perf_counter()))


build = Busy
'''


def with_an_engine(folder: Path, name: str, text: str, *kinds: str) -> dict[str, str]:
    """The environment of a copy of the harness that has one more engine."""
    copy = folder / "copy"
    shutil.copytree(TOP / "bench", copy / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    engine = copy / "bench" / "engines" / name
    engine.mkdir()
    (engine / "__init__.py").write_text('"""Wrong answers."""\n')
    for kind in kinds:
        (engine / f"{kind}.py").write_text(text)
    return {"PYTHONPATH": os.fspath(copy)}


def test_a_wrong_answer_is_a_failed_case(bench: Bench, tmp_path: Path) -> None:
    """However fast it is; the right engine beside it is measured, and says how far it is off."""
    arguments = [*TINY, "--device", "cpu", "--engine", "wrong,eager", "--json"]
    done = bench("run", *arguments, env=with_an_engine(tmp_path, "wrong", WRONG, "float"))
    assert done.code == 4
    wrong, eager = done.cases
    assert wrong["status"] == "failed"
    assert "a wrong answer is not a measurement" in wrong["reason"]
    assert wrong["throughput_images_per_s"] is None
    assert eager["output_error"] < 1e-5


@pytest.mark.parametrize(
    ("name", "text", "precision"),
    [("stale", STALE, "int8"), ("stale", STALE, "amp"), ("queue", QUEUE, "int8")],
)
def test_an_answer_to_another_question_is_a_failed_case(
    bench: Bench, tmp_path: Path, name: str, text: str, precision: str
) -> None:
    """Random weights answer all images nearly alike: within what rounding may do to an answer."""
    arguments = [*TINY, "--device", "cpu", "--engine", name, "--precision", precision, "--json"]
    done = bench("run", *arguments, env=with_an_engine(tmp_path, name, text, "float", "int8"))
    (record,) = done.cases
    assert record["status"] == "failed"
    assert "do not follow the input" in record["reason"]
    assert record["throughput_images_per_s"] is None


def test_a_network_trained_for_int8_that_answers_wrongly_fails(
    bench: Bench, tmp_path: Path
) -> None:
    """From random weights too."""
    arguments = [*TINY, "--device", "cpu", "--engine", "off", "--precision", "int8"]
    done = bench(
        "run", *arguments, "--recipe", "qat", "--json",
        env=with_an_engine(tmp_path, "off", OFF, "float", "int8"),
    )  # fmt: skip
    (record,) = done.cases
    assert record["status"] == "failed"
    assert "differ from eager fp32 by 1 of their size" in record["reason"]


# One worker runs all that share the records of every engine: they take a minute to make.
together = pytest.mark.xdist_group("every_engine")
ENGINES = ["eager", "compile", "onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def every_engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Records of each engine in fp32 and INT8, and of two engines with another batch size."""
    folder = tmp_path_factory.mktemp("engines")
    first = ["--engine", ",".join(ENGINES), "--precision", "fp32,int8", "--batch-size", "8"]
    then = ["--engine", "onnxruntime,openvino", "--batch-size", "1"]
    rows: list[dict[str, Any]] = []
    for arguments in (first, then):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "bench",
                "run",
                *TINY,
                "--device",
                "cpu",
                *arguments,
                "--threads",
                "1",
                "--json",
            ],
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    return folder, [r for r in rows if r["purpose"] == "grid"]


@together
def test_every_engine_does_the_same_work(every_engine: Any) -> None:
    """Measured, the same weights, near eager fp32, as many threads as asked for, read back."""
    _, rows = every_engine
    assert [(r["status"], r["reason"]) for r in rows] == [("measured", None)] * 10
    assert {(r["engine"], r["precision"]) for r in rows} == set(
        itertools.product(ENGINES, ("fp32", "int8"))
    )
    assert len({r["weights_sha256"] for r in rows}) == 1
    assert {r["threads_used"] for r in rows} == {1}
    for r in rows:
        assert 0 <= r["output_error"] < (1e-4 if r["precision"] == "fp32" else 0.3), r["case_id"]
    # INT8 rounds: where an answer is exactly that of fp32, it was fp32 that ran.
    assert all(r["output_error"] > 1e-4 for r in rows if r["precision"] == "int8")


@together
def test_int8_is_proven(every_engine: Any) -> None:
    """By what ran, by the size of what is stored, and without empty praise for random weights."""
    for r in every_engine[1]:
        if r["precision"] == "fp32":
            assert r["int8_mac_share"] is None
            continue
        assert r["int8_mac_share"] > 0.9, r["case_id"]
        assert 3 < r["fp32_model_bytes"] / r["model_bytes"] < 4.5, r["case_id"]
        assert r["calibrated_images"] == 32
        assert 0 < r["calibration_s"] < r["build_s"]
        assert r["fidelity_images"] == 256
        assert r["top1_agreement"] is None
        assert "of 1000 classes" in r["top1_agreement_note"]
        assert "fidelity_unproven" in r["warnings"]


@together
def test_fp32_is_read_back(every_engine: Any) -> None:
    """Each runtime says itself what it computes in and with how many threads."""
    found = {r["engine"]: " ".join(r["settings"]) for r in every_engine[1] if r["round"] == 1}
    assert "mkldnn.conv.fp32_precision=ieee" in found["eager"]
    assert "onnxruntime.intra_op_num_threads=1" in found["onnxruntime"]
    assert "openvino.INFERENCE_NUM_THREADS=1" in found["openvino"]
    fp32 = [r for r in every_engine[1] if (r["engine"], r["precision"]) == ("openvino", "fp32")]
    assert all("openvino.INFERENCE_PRECISION_HINT=f32" in r["settings"] for r in fp32)


@together
def test_the_second_batch_size_finds_the_export_of_the_first(every_engine: Any) -> None:
    """Marked, with the seconds of the cold build."""
    for engine in ("onnxruntime", "openvino"):
        first, second = (
            next(
                r
                for r in every_engine[1]
                if (r["engine"], r["precision"], r["batch_size"]) == (engine, "fp32", size)
            )
            for size in (8, 1)
        )
        assert (first["build_cached"], second["build_cached"]) == (False, True)
        assert second["build_s"] == pytest.approx(first["build_s"], rel=0.5)


@together
def test_the_report_judges_int8_and_draws_the_engines(every_engine: Any) -> None:
    folder, _ = every_engine
    done = subprocess.run(
        [sys.executable, "-m", "bench", "report"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    page = (folder / "reports/latest/index.html").read_text(encoding="utf-8")
    assert done.returncode == 0
    assert (folder / "reports/latest/engines.png").stat().st_size > 10_000
    section = page.partition("<h2>INT8</h2>")[2].partition("<h2>")[0]
    assert section.count("4× smaller: holds") == 4
    assert section.count("2–3× faster") == 4


def test_a_damaged_build_is_made_again(bench: Bench, tmp_path: Path) -> None:
    """Half a file in the cache is neither trusted nor the end."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    arguments = [*TINY, "--device", "cpu", "--engine", "onnxruntime", "--json"]
    (first,) = bench("run", *arguments, env=cache).cases
    (path,) = (tmp_path / "cache").rglob("model.onnx")
    path.write_bytes(path.read_bytes()[:1000])
    (again,) = bench("run", *arguments, env=cache).cases
    assert (first["build_cached"], again["build_cached"]) == (False, False)
    assert (again["status"], again["output_error"]) == ("measured", first["output_error"])
    (kept,) = bench("run", *arguments, env=cache).cases
    (rebuilt,) = bench("run", *arguments, "--no-cache", env=cache).cases
    assert (kept["build_cached"], rebuilt["build_cached"]) == (True, False)


def test_int8_from_the_cache_is_the_cold_one(bench: Bench, tmp_path: Path) -> None:
    """The same answers from kept ranges; other calibration images are another build."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    engines = ["--engine", "eager,onnxruntime,openvino"]
    arguments = [*TINY, "--device", "cpu", "--precision", "int8", *engines, "--json"]
    first = bench("run", *arguments, env=cache).cases
    second = bench("run", *arguments, env=cache).cases
    third = bench("run", *arguments, "--calibration-images", "16", env=cache).cases
    for cold, kept, other in zip(first, second, third, strict=True):
        assert (cold["build_cached"], kept["build_cached"]) == (False, True), cold["engine"]
        assert kept["output_error"] == cold["output_error"]
        assert kept["fidelity_sqnr_db"] == cold["fidelity_sqnr_db"]
        assert other["output_error"] != cold["output_error"], cold["engine"]


def test_compiled_code_is_found_again(bench: Bench, tmp_path: Path) -> None:
    """The same answers, marked, and the seconds of the cold build."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    arguments = [*TINY, "--device", "cpu", "--engine", "compile", "--threads", "1", "--json"]
    (cold,) = bench("run", *arguments, env=cache).cases
    built = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.so")}
    (kept,) = bench("run", *arguments, env=cache).cases
    assert built
    assert built == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.so")}
    assert (cold["build_cached"], kept["build_cached"]) == (False, True)
    assert (kept["status"], kept["output_error"]) == ("measured", cold["output_error"])
    assert kept["logits_mean"] == cold["logits_mean"]
    assert kept["build_s"] == pytest.approx(cold["build_s"], rel=0.3)


def test_training_compiles_anew(bench: Bench, tmp_path: Path) -> None:
    """Marked; nothing of torch's own cache is used, and nothing is left in the project's."""
    folders = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    arguments = [*TINY, "--device", "cpu", "--engine", "compile,eager", "--task", "train"]
    done = bench("run", *arguments, "--batch-size", "2", "--json", env=folders)
    compiled, eager = done.cases
    assert compiled["status"] == "measured", compiled["reason"]
    assert (compiled["build_cached"], compiled["build_s"]) == (False, None)
    assert (eager["build_cached"], eager["build_s"]) == (None, None)
    assert compiled["first_step_s"] > 10 * eager["first_step_s"]
    assert compiled["first_loss"] == pytest.approx(eager["first_loss"], rel=1e-3)
    assert not list((tmp_path / "cache").rglob("inductor*"))
    assert not list((tmp_path / "tmp").rglob("fxgraph"))


@together
def test_compiled_code_is_kept_by_all_that_decides_it(every_engine: Any) -> None:
    """Code for other ranges is other code, though the weights are the same."""
    folder, rows = every_engine
    found = [json.loads(p.read_bytes())["key"] for p in folder.rglob("inductor-*/artefact.json")]
    fp32, int8 = sorted((key["made_of"] for key in found), key=len)
    assert fp32 == {}
    assert set(int8) >= {"calibration", "reduced", "torchao", "weights_sha256"}
    assert {key["weights_sha256"] for key in found} == {rows[0]["weights_sha256"]}


def test_what_an_engine_cannot_do_is_said(bench: Bench) -> None:
    """Skipped with the reason and what would work; nothing is measured, exit 3."""
    cases = [
        (["--engine", "onnxruntime", "--task", "train"], "ONNX Runtime is for inference"),
        (["--engine", "openvino", "--task", "train"], "OpenVINO is for inference"),
        (["--engine", "openvino", "--memory-format", "contiguous"], "its own memory format"),
        (["--engine", "eager", "--engine-mode", "throughput"], "eager has no mode throughput"),
        (["--engine", "tensorrt"], "pip install torch_tensorrt"),
        (["--engine", "onnxruntime", "--precision", "int8", "--recipe", "qat"], "by torchao"),
        (["--task", "train", "--precision", "int8"], "--recipe qat"),
    ]
    for arguments, reason in cases:
        done = bench("run", *TINY, "--device", "cpu", *arguments, "--json")
        assert done.code == 3, arguments
        assert reason in done.cases[0]["reason"], arguments
    wrong = bench("run", *TINY, "--engine-mode", "latency")
    assert wrong.code == 2
    assert "no engine mode 'latency'" in wrong.err
    assert "Without --engine-mode" in wrong.err


def test_a_queue_is_timed_until_it_is_empty(bench: Bench, tmp_path: Path) -> None:
    """Its last request has ended before the clock is read; putting it there takes no time."""
    arguments = [*TINY, "--device", "cpu", "--engine", "busy", "--json"]
    done = bench("run", *arguments, env=with_an_engine(tmp_path, "busy", BUSY, "float"))
    (record,) = done.cases
    assert record["status"] == "measured", record["reason"]
    assert 0 < record["throughput_images_per_s"] <= 20.0 * record["batch_size"]


def test_a_request_brings_a_tensor_of_its_own(bench: Bench, tmp_path: Path) -> None:
    """What an engine does with images it has not seen is part of latency, not of throughput."""
    arguments = [*TINY, "--device", "cpu", "--engine", "wary", "--memory-format", "contiguous"]
    arguments += ["--max-seconds", "2"]
    env = with_an_engine(tmp_path, "wary", WARY, "float")
    (record,) = bench("run", *arguments, "--json", env=env).cases
    assert record["status"] == "measured", record["reason"]
    assert record["latency_p50_ms"] >= 50
    assert record["throughput_images_per_s"] > 20 * record["batch_size"]


def test_openvino_keeps_several_requests_going(bench: Bench) -> None:
    """The throughput hint is read back, and every answer has come before the clock is read."""
    done = bench(
        "run", *TINY, "--device", "cpu", "--engine", "openvino",
        "--engine-mode", "throughput", "--json",
    )  # fmt: skip
    (record,) = done.cases
    assert record["status"] == "measured", record["reason"]
    assert "THROUGHPUT" in " ".join(record["settings"])
    assert record["case_id"].endswith("/engine_mode=throughput")


def test_training_for_int8_is_measured_and_converted(bench: Bench, images: Path) -> None:
    """A QAT step is trained and timed; inference measures the INT8 model that training gives."""
    done = bench(
        "run", *TINY, "--device", "cpu", "--task", "train,infer", "--recipe", "qat",
        "--precision", "fp32,int8", "--batch-size", "8", "--data", f"folder:{images}", "--json",
    )  # fmt: skip
    found = {(r["task"], r["precision"]): r for r in done.cases}
    step = found["train", "fp32"]
    assert step["status"] == "measured", step["reason"]
    assert "optimizer.fused=True" in step["settings"]  # as in the recipe it is compared with
    assert step["last_loss"] is not None
    assert found["train", "int8"]["status"] == "skipped"
    model = found["infer", "int8"]
    assert model["status"] == "measured", model["reason"]
    assert model["recipe"] == "qat"
    assert model["calibrated_images"] == 8 * 32
    assert model["int8_mac_share"] > 0.9
    assert model["top1_accuracy"] is not None


def test_the_best_way_is_searched_for(bench: Bench) -> None:
    """Every try is a record; the winner, the gain and the command are said."""
    done = bench(
        "best", "--model", "resnet18", "--image-size", "32", "--device", "cpu",
        "--engine", "eager,onnxruntime", "--batch-size", "1,4", "--max-minutes", "1",
        timeout=600,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "The fastest here: resnet18/infer/cpu/" in done.out
    assert "× eager fp32" in done.out or "It is eager fp32 itself" in done.out
    assert "Measure it again: bench run --plan one" in done.out
    again = done.out.rpartition("Measure it again: bench ")[2].split()
    checked = bench(*again, "--dry-run")
    assert checked.code == 0
    assert "1 can run here" in checked.out


def test_a_search_that_cannot_be_judged_is_refused(bench: Bench) -> None:
    for arguments, word in (
        (["--min-agreement", "99%"], "--weights"),
        (["--max-latency-ms", "0"], "--max-latency-ms"),
        (["--percentile", "42"], "--percentile"),
        (["--max-minutes", "-1"], "--max-minutes"),
        (["--engine", "warp"], "warp"),
    ):
        done = bench("best", *arguments)
        assert done.code == 2, arguments
        assert word in done.err


@together
def test_compilation_is_set_up_and_not_measured(every_engine: Any) -> None:
    """It took longer than any step."""
    (compiled,) = (
        r for r in every_engine[1] if (r["engine"], r["precision"]) == ("compile", "fp32")
    )
    assert compiled["setup_s"] > compiled["build_s"] > compiled["first_step_s"]
