"""INT8 records and what may be said of them beside the articles' claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import analysis, int8, store
from bench.engines._macs import Layer, in_float, of_layer, share
from bench.engines._tensorrt import _layers
from bench.errors import Unproven
from bench.schema import Case
from tests import records


def judged(folder: Path, *made: Any) -> list[int8.Int8]:
    records.write(folder, *made)
    frame = store.read(folder).frame
    return int8.verdicts(analysis.newest(frame), frame)


def one(engine: str, precision: str, rate: float, bytes_: int | None, **more: Any) -> Any:
    case = Case(engine=engine, precision=precision, **more.pop("case", {}))
    run = {name: more.pop(name) for name in ("run_id", "round", "number") if name in more}
    return records.record(case, rate, measurement={"model_bytes": bytes_, **more}, **run)


def three(*arguments: Any, **more: Any) -> list[Any]:
    """Rounds in three processes, 1 % apart."""
    engine, precision, rate, bytes_ = arguments
    return [
        one(engine, precision, rate * (1 + n / 100), bytes_, round=n + 2, number=n + 2, **more)
        for n in (-1, 0, 1)
    ]


def test_speed_is_against_the_same_engine_and_against_the_best(tmp_path: Path) -> None:
    """Eager is never the headline of another engine."""
    (found,) = judged(
        tmp_path,
        *three("eager", "fp32", 10, 100),
        *three("openvino", "fp32", 20, 100),
        *three("onnxruntime", "fp32", 25, 104),
        *three("openvino", "int8", 50, 26, fp32_model_bytes=100),
    )
    assert found.own_fp32 is not None
    assert found.own_fp32.value == pytest.approx(2.5)
    assert found.best_fp32 is not None
    assert found.best_fp32.value == pytest.approx(2.0)
    assert found.smaller == pytest.approx(100 / 26)
    assert found.verdict == "4× smaller: holds; 2–3× faster: holds"


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (15, "does not hold, less"),
        (20, "cannot be told, 2.00 ± 0.07 could be either side of 2"),
        (30, "cannot be told, 3.00 ± 0.11 could be either side of 3"),
        (40, "more than that"),
    ],
)
def test_the_interval_decides_about_the_claim(tmp_path: Path, rate: float, said: str) -> None:
    """A number on the edge proves nothing."""
    fp32, found_int8 = three("openvino", "fp32", 10, 100), three("openvino", "int8", rate, 50)
    (found,) = judged(tmp_path, *fp32, *found_int8)
    assert found.verdict == f"4× smaller: does not hold; 2–3× faster: {said}"


@pytest.mark.parametrize(("processes", "said"), [(1, "in one process"), (2, "in 2 processes")])
def test_fewer_than_three_processes_decide_nothing(
    tmp_path: Path, processes: int, said: str
) -> None:
    """Processes differ by what no interval inside one of them knows."""
    fp32 = three("openvino", "fp32", 10, 100)
    (found,) = judged(tmp_path, *fp32, *three("openvino", "int8", 25, 26)[:processes])
    assert found.own_fp32 is not None
    assert found.own_fp32.doubt == said
    assert f"2–3× faster: {said} 2." in found.verdict
    assert "inconclusive; --repeats 3 of both decides" in found.verdict
    assert "holds" not in found.verdict.partition(";")[2]


def test_rows_of_different_runs_decide_nothing(tmp_path: Path) -> None:
    """Only rounds of one run are interleaved; a machine is another one an hour later."""
    later = {"run_id": "20260102T000000Z-aaaaaa"}
    (found,) = judged(
        tmp_path,
        *three("openvino", "fp32", 10, 100),
        *three("openvino", "int8", 25, 26, **later),
    )
    assert "2–3× faster: in different runs 2.50 ± 0.09, inconclusive" in found.verdict


def test_a_later_run_of_fp32_alone_takes_nothing_from_a_pair(tmp_path: Path) -> None:
    """The pair's own fp32 was interleaved with it, whatever the newest one says."""
    (found,) = judged(
        tmp_path,
        *three("openvino", "fp32", 10, 100),
        *three("openvino", "int8", 25, 26),
        *three("openvino", "fp32", 20, 100, run_id="20260102T000000Z-aaaaaa"),
    )
    assert found.own_fp32 is not None
    assert found.own_fp32.value == pytest.approx(2.5)
    assert found.verdict.endswith("2–3× faster: holds")


def test_the_best_fp32_is_the_same_in_both_tables(tmp_path: Path) -> None:
    """Of the same network, on the same device."""
    records.write(
        tmp_path,
        one("openvino", "int8", 50, 26),
        one("onnxruntime", "fp32", 25, 104),
        one("onnxruntime", "fp32", 99, 104, case={"weights": "default"}),
        one("onnxruntime", "fp32", 98, 104, case={"classes": 10}),
        one("onnxruntime", "fp32", 97, 104, case={"batch_size": 8}),
    )
    frame = store.read(tmp_path).frame
    rows = analysis.newest(frame)
    (verdict,) = int8.verdicts(rows, frame)
    (speedup,) = [s for s in analysis.speedups(rows, None) if s.row["precision"] == "int8"]
    assert verdict.best_fp32 == speedup.best_fp32
    assert verdict.best_fp32 is not None
    assert verdict.best_fp32.value == pytest.approx(2)


def test_what_was_not_measured_is_untested(tmp_path: Path) -> None:
    (found,) = judged(tmp_path, one("openvino", "int8", 40, None))
    assert (found.own_fp32, found.best_fp32, found.smaller) == (None, None, None)
    assert found.verdict == (
        "4× smaller: untested; 2–3× faster: untested, fp32 of this engine was not measured"
    )


def test_accuracy_lost_is_of_the_same_inputs(tmp_path: Path) -> None:
    (found,) = judged(
        tmp_path,
        one("eager", "int8", 40, 25, top1_accuracy=0.75, fp32_top1_accuracy=0.76),
    )
    assert found.accuracy_lost == pytest.approx(0.01)


def test_what_training_for_int8_costs(tmp_path: Path) -> None:
    """Against the same training without it, in steps."""
    task = {"task": "train", "batch_size": 32}
    records.write(
        tmp_path,
        one("eager", "fp32", 30, None, case=task),
        one("eager", "fp32", 10, None, case={**task, "recipe": "qat"}),
        one("eager", "fp32", 10, None, case={**task, "recipe": "qat", "batch_size": 8}),
    )
    found = {
        c.row["batch_size"]: c.times
        for c in int8.training_costs(analysis.newest(store.read(tmp_path).frame))
    }
    assert found[32] is not None
    assert found[32].value == pytest.approx(3)
    assert found[8] is None


def test_under_one_half_is_not_int8() -> None:
    layers = [Layer("Conv a", 40.0, True), Layer("Conv b", 60.0, False)]
    with pytest.raises(Unproven, match="only 40% of the multiply-adds ran in INT8"):
        share(layers, 100.0)
    assert share([*layers, Layer("Gemm c", 20.0, True)], 120.0) == 0.5
    assert in_float(layers) == ["Conv b"]


def test_multiply_adds_of_a_layer() -> None:
    """ResNet-50's stem: 118,013,952 an image, and its classifier: 2,048,000."""
    assert of_layer((1, 64, 112, 112), (64, 3, 7, 7)) == 118_013_952
    assert of_layer((8, 1000), (1000, 2048)) == 8 * 2_048_000


def test_layers_as_tensorrt_inspects_them() -> None:
    """A convolution in INT8, one in FP16, and layers without weights."""
    told = {
        "Layers": [
            {
                "Name": "conv1",
                "Outputs": [{"Dimensions": [2, 64, 112, 112]}],
                "Weights": {"Type": "Int8", "Count": 64 * 3 * 7 * 7},
            },
            {
                "Name": "fc",
                "Outputs": [{"Dimensions": [2, 1000]}],
                "Weights": {"Type": "Half", "Count": 1000 * 2048},
            },
            {"Name": "pool", "Outputs": [{"Dimensions": [2, 64, 56, 56]}]},
            "a name alone, where the inspector was not told to say more",
        ]
    }
    conv, product = _layers(told)
    assert (conv.macs, conv.int8) == (2 * 118_013_952, True)
    assert (product.macs, product.int8) == (2 * 2_048_000, False)


@pytest.mark.slow
def test_the_twin_of_a_network_trained_for_int8_keeps_no_gradients(tmp_path: Path) -> None:
    """Hundreds of inputs pass through it; graphs for gradients would fill the memory."""
    import torch

    from bench import models, pt2e, registry
    from bench.cache import Cache

    model = models.build("resnet18", "random", 10, 1)
    images, target = torch.randn(4, 3, 32, 32), torch.arange(4)
    recipe = registry.load("recipes", "qat")
    made = pt2e.trained(model, [(images, target)] * 2, recipe, Cache(tmp_path), {})
    assert made.reference is not None
    logits = made.reference(images)
    assert logits.grad_fn is None
    assert torch.equal(logits, made.reference(images))  # it observes nothing any more
    assert torch.isfinite(made.reference(images[:1])).all()


@pytest.mark.slow
def test_training_for_int8_keeps_the_statistics_of_batch_norms(tmp_path: Path) -> None:
    """Its ranges are of activations that INT8 meets; weights do learn."""
    import torch

    from bench import models, pt2e, registry
    from bench.cache import Cache

    model = models.build("resnet18", "random", 10, 1)
    before = model.state_dict()
    images, target = 3 + torch.randn(4, 3, 32, 32), torch.arange(4)
    recipe = registry.load("recipes", "qat")
    pt2e.trained(model, [(images, target)] * 2, recipe, Cache(tmp_path), {})
    (kept,) = tmp_path.rglob(pt2e.LEARNT)
    learnt = torch.load(kept, weights_only=True)
    statistics = [name for name in before if "running" in name]
    assert len(statistics) == 40
    assert all(torch.equal(learnt[name], before[name]) for name in statistics)
    assert not torch.equal(learnt["conv1.weight"], before["conv1.weight"])


@pytest.mark.slow
def test_training_for_int8_stays_within_the_numbers_or_says_that_it_left_them(
    tmp_path: Path,
) -> None:
    """Long gradients, as random weights of deep networks have, are clipped; NaN is told."""
    import torch

    from bench import models, pt2e, registry
    from bench.cache import Cache
    from bench.errors import Unproven

    model = models.build("resnet18", "random", 10, 1)
    lessons = [(1e6 * torch.randn(4, 3, 32, 32), torch.arange(4))] * 3
    recipe = registry.load("recipes", "qat")
    pt2e.trained(model, lessons, recipe, Cache(tmp_path), {})
    (kept,) = tmp_path.rglob(pt2e.LEARNT)
    learnt = torch.load(kept, weights_only=True)
    assert all(learnt[name].isfinite().all() for name, _ in model.named_parameters())

    class Lost:
        optimizer = staticmethod(recipe.optimizer)

        @staticmethod
        def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return float("nan") * recipe.loss(logits, target)

    with pytest.raises(Unproven, match="lost its numbers in step 1 of 3"):
        pt2e.trained(model, lessons, Lost, Cache(tmp_path), {"again": True})
