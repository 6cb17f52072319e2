"""`scripts/fidelity`: what it writes comes from the records, and without them it writes nothing."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "fidelity.py"
ENGINES = ["eager", "onnxruntime"]


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def row(engine: str, precision: str = "int8", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "engine": engine, "precision": precision, "recipe": "sgd", "status": "measured",
        "reason": None, "model": "resnet18", "image_size": 32, "model_bytes": 25,
        "fp32_model_bytes": 100, "top1_agreement": 0.99, "top1_agreement_note": None,
        "fp32_top1_accuracy": 0.8, "top1_accuracy": 0.795, "fidelity_images": 1234,
        "fidelity_sqnr_db": 27.0, "int8_mac_share": 0.99, "calibrated_images": 256,
        "calibration_s": 4.0, "torch": "2.9.9", "torchao": "0.15.9", "onnxruntime": "1.20.9",
        "openvino": None, "cpu_model": "Test CPU", "cpu_cores_usable": 2,
        "cpu_features": ["avx2"],
    }  # fmt: skip
    if precision != "int8":
        found |= {"model_bytes": 100, "top1_agreement": None}
    return found | more


def every() -> list[dict[str, Any]]:
    plain = [row(engine, "fp32") for engine in ENGINES]
    return [*plain, row("eager"), row("onnxruntime"), row("eager", recipe="qat")]


def run(
    script: dict[str, Any], tmp_path: Path, rows: list[dict[str, Any]], *arguments: str
) -> tuple[int, Path]:
    """The script's main on these records; training and measuring are left out."""
    names = script["main"].__globals__
    names["measure"] = lambda *_: rows
    names["check"] = lambda *_: None
    names["train"] = lambda *_: "trained for 6 epochs on the 40 training images of `photos`"
    out = tmp_path / "fidelity.md"
    data = str(tmp_path / "photos")
    with pytest.MonkeyPatch.context() as patch:
        wanted = ["--engine", ",".join(ENGINES), "--out", str(out), "--data", data]
        patch.setattr(sys, "argv", ["fidelity.py", *wanted, *arguments])
        return script["main"](), out


def test_the_page_says_what_was_compared_and_with_what(
    script: dict[str, Any], tmp_path: Path
) -> None:
    """Numbers of the records, not those that were asked for; no path of this machine."""
    code, out = run(script, tmp_path, every(), "--images", "5000")
    text = " ".join(out.read_text().split())
    assert code == 0
    assert "on 1,234 test images" in text
    assert "40 training images of `photos`" in text
    assert "--data photos --epochs 6 --engine eager,onnxruntime" in text
    for fact in ("torch 2.9.9", "torchao 0.15.9", "onnxruntime 1.20.9", "Test CPU (2 cores"):
        assert fact in text
    assert "openvino" not in text
    assert str(tmp_path) not in text
    assert text.count("| kept |") == 3


def test_weights_of_before_claim_no_training(script: dict[str, Any], tmp_path: Path) -> None:
    weights = tmp_path / "before.pt"
    weights.write_bytes(b"")
    _, out = run(script, tmp_path, every(), "--weights", str(weights))
    text = " ".join(out.read_text().split())
    assert "--weights before.pt" in text
    assert "with weights trained before" in text
    assert "epochs" not in text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "eager: bench run gave no record of its INT8."),
        ([r for r in every() if r["engine"] == "eager"], "onnxruntime: bench run gave no record"),
        (
            [*every()[:3], row("onnxruntime", status="failed", reason="it broke"), every()[4]],
            "onnxruntime: failed: it broke.",
        ),
        (
            [
                *every()[:4],
                row("eager", recipe="qat", top1_agreement=None, top1_agreement_note="no"),
            ],
            "eager, QAT: measured: no.",
        ),
    ],
)
def test_an_engine_without_its_number_is_no_page(
    script: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    said: str,
) -> None:
    """Exit 1, the reason said, and an earlier page stays as it is."""
    (tmp_path / "fidelity.md").write_text("an earlier page")
    code, out = run(script, tmp_path, rows)
    assert code == 1
    assert out.read_text() == "an earlier page"
    assert said in capsys.readouterr().err


def test_a_broken_promise_is_told_and_fails(script: dict[str, Any], tmp_path: Path) -> None:
    rows = [*every()[:3], row("onnxruntime", top1_agreement=0.97), every()[4]]
    code, out = run(script, tmp_path, rows)
    assert code == 1
    assert "97.00 %" in out.read_text()
    assert "| broken |" in out.read_text()


def test_no_difference_at_all_has_no_decibels(script: dict[str, Any]) -> None:
    """And a number that was not measured is a dash."""
    text = script["table"]([row("eager", fidelity_sqnr_db=None, int8_mac_share=None)])
    assert "| – | – |" in text


def photos(tmp_path: Path, *parts: str) -> str:
    """A folder of one class; nothing is decoded."""
    for part in parts:
        folder = tmp_path / "photos" / part / "cat"
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.jpg").touch()
    return str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("parts", "more", "said"),
    [
        (["."], [], "its folder test has 0"),  # the network would be judged by what it learnt
        (["train", "test"], ["--images", "4"], "4 test images are compared"),
        ([], [], "there is no such folder"),
        (["train", "test"], ["--images", "3", "--engine", "typo"], "not typo"),
        (["train", "test"], ["--images", "3", "--epochs", "0"], "expected 1 or more"),
        (["train", "test"], ["--images", "3", "--out", "nowhere/x.md"], "no folder nowhere"),
        (["train", "test"], ["--images", "3", "--keep", "."], ". is a folder; name a file"),
    ],
)
def test_what_could_not_end_well_is_said_before_the_training(
    script: dict[str, Any],
    tmp_path: Path,
    parts: list[str],
    more: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = photos(tmp_path, *parts) if parts else str(tmp_path / "photos")
    monkeypatch.setattr(sys, "argv", ["fidelity.py", "--data", data, *more])
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
