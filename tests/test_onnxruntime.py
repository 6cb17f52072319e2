"""ONNX Runtime on a GPU that is not there: what it is told, and what it must answer."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.engines import _onnx
from bench.errors import Unproven
from bench.precisions import PRECISIONS
from bench.schema import Case

TENSORRT, CUDA, CPU = (f"{n}ExecutionProvider" for n in ("Tensorrt", "CUDA", "CPU"))


class Library:
    """In place of InferenceSession, with its parameters: opens what `loads`, as it was told."""

    loads: tuple[str, ...] = (TENSORRT, CUDA, CPU)
    told: dict[str, Any]
    deaf = False  # whether it forgets what it was told

    def __init__(
        self,
        path_or_bytes: str,
        sess_options: Any = None,
        providers: Any = None,
        provider_options: Any = None,
        enable_fallback: bool = True,
    ) -> None:
        Library.told = {"providers": providers, "enable_fallback": enable_fallback}
        self.opened = {n: {} if self.deaf else o for n, o in providers if n in self.loads}

    def get_providers(self) -> list[str]:
        return list(self.opened)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return self.opened

    def io_binding(self) -> None:
        return None


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[Library]:
    import onnxruntime

    known = [TENSORRT, CUDA, CPU]  # built in, whether or not their libraries load
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Library)
    monkeypatch.setenv(_onnx.OVERRIDE, "1")  # and back again after the test
    return Library


def opened(folder: Path, precision: str, **case: Any) -> _onnx.Session:
    """A session of an empty file on the second GPU, whose stream is number 7."""
    device = SimpleNamespace(
        asynchronous=True, torch_device=lambda: torch.device("cuda", 1), stream=lambda: 7
    )
    job = SimpleNamespace(
        case=Case(engine="onnxruntime", precision=precision, **case),
        device=device,
        precision=PRECISIONS[precision],
    )
    path = folder / "model.onnx"
    path.touch()
    return _onnx.Session(job, path)  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1")])
def test_cuda_is_told_its_stream_and_its_precision(
    library: type[Library], tmp_path: Path, precision: str, tf32: str
) -> None:
    """By its options; and nothing else is opened in its place."""
    opened(tmp_path, precision)
    (first, options), (second, _) = library.told["providers"]
    assert (first, second) == (CUDA, CPU)
    assert options == {
        "device_id": "1",
        "use_tf32": tf32,
        "user_compute_stream": "7",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }
    assert library.told["enable_fallback"] is False


@pytest.mark.parametrize(("precision", "override"), [("fp32", "0"), ("tf32", None)])
def test_tensorrt_has_no_option_for_tf32(
    library: type[Library], tmp_path: Path, precision: str, override: str | None
) -> None:
    """Its libraries read a variable; its options are its own."""
    opened(tmp_path, precision, engine_mode="tensorrt")
    names = [name for name, _ in library.told["providers"]]
    assert names == [TENSORRT, CUDA, CPU]
    assert library.told["providers"][0][1] == {"device_id": "1", "user_compute_stream": "7"}
    assert os.environ.get(_onnx.OVERRIDE) == override


def test_another_provider_than_the_one_asked_for_is_no_number(
    library: type[Library], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that does not load leaves the next provider; a session on it opens all the same."""
    monkeypatch.setattr(library, "loads", (CUDA, CPU))
    with pytest.raises(Unproven, match=f"opened {CUDA}, not {TENSORRT}"):
        opened(tmp_path, "fp32", engine_mode="tensorrt")
    opened(tmp_path, "fp32")
    monkeypatch.setattr(library, "loads", (CPU,))
    with pytest.raises(Unproven, match=f"opened {CPU}, not {CUDA}"):
        opened(tmp_path, "fp32")


def test_tf32_is_read_back(
    library: type[Library], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "deaf", True)
    with pytest.raises(Unproven, match="says use_tf32=None, it was told use_tf32=0"):
        opened(tmp_path, "fp32")
