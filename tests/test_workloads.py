"""Models, data and precisions, through the public command on small cases."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import proof
from bench.precisions import PRECISIONS
from bench.recipes import sgd
from bench.training import Trainer
from tests.conftest import TINY, Bench

pytestmark = pytest.mark.slow

TRAIN = [*TINY, "--task", "train", "--batch-size", "4", "--json"]


def test_a_corrupt_image_is_named_skipped_and_counted(bench: Bench, images: Path) -> None:
    """The batch keeps its size: another image takes the place."""
    (images / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (images / "train" / "dog" / "empty.png").touch()
    done = bench("run", *TRAIN, "--data", "folder:images", "--epochs", "2", "--full")
    assert done.code == 0, done.err
    record = done.cases[0]
    assert record["corrupt_images"] == ["cat/broken.jpg", "dog/empty.png"]
    assert record["corrupt_image_count"] == 2
    assert "corrupt_images" in record["warnings"]


def test_a_training_record_splits_its_seconds(bench: Bench, images: Path) -> None:
    """Waiting, copying and computing add up to a step; one boundary between epochs is seen."""
    case = [*TRAIN, "--data", "folder:images", "--loader-workers", "1", "--epochs", "3"]
    record = bench("run", *case).cases[0]
    parts = [record[name] for name in ("data_wait_s", "copy_s", "compute_s")]
    assert all(part >= 0 for part in parts)
    steady = record["samples_s"][record["warmup_samples"] :]
    per_step = sum(steady) / len(steady) / record["steps_per_sample"]
    assert sum(parts) == pytest.approx(per_step, rel=0.25)
    assert record["epoch_images"] == 40
    # Ten steps an epoch; boundaries that fell into the samples are not counted twice.
    most = 3 * (10 * per_step + record["epoch_boundary_s"])
    assert 0.5 * most < record["projected_s"] <= most
    assert record["full"] is False
    assert record["train_s"] is None


def test_steps_that_loss_scaling_skips_are_not_compared() -> None:
    """fp16 gradients overflow until the scale is low enough: the loss compared is after updates."""

    class Scaled:
        """A CPU that scales losses as a GPU does in fp16, from `scale` on."""

        def __init__(self, scale: float) -> None:
            self.scale = scale

        def scaler(self, _: object) -> torch.amp.GradScaler:
            return torch.amp.GradScaler("cpu", init_scale=self.scale)

        def autocast_dtype(self, _: object) -> None:
            return None

        def torch_device(self) -> torch.device:
            return torch.device("cpu")

    def trained(scale: float, steps: int, brightness: float = 20) -> dict[str, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        device: Any = Scaled(scale)
        trainer = Trainer(model, sgd, device, PRECISIONS["amp"])
        images, target = brightness * torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
        for _ in range(steps):
            trainer(images, target)
        return proof.losses(trainer, full=False) | {"skipped": trainer.updates_skipped}

    plain, scaled = trained(1.0, 20), trained(2.0**127, 20)
    assert plain["last_loss"] < plain["first_loss"] == scaled["first_loss"]
    assert plain["last_loss_step"] == 3
    assert scaled["last_loss_step"] > 3
    assert scaled["last_loss"] == pytest.approx(plain["last_loss"])
    assert not scaled["skipped"]
    unknown = {"first_loss": plain["first_loss"], "last_loss": None, "last_loss_step": None}
    assert trained(2.0**127, 2) == unknown | {"skipped": False}
    # Overflowing whatever the scale, until that is 0 and falls no more.
    for steps in (40, 400):
        assert trained(2.0**127, steps, brightness=3e38)["skipped"]


def test_full_training_reports_real_seconds_and_accuracies(bench: Bench, images: Path) -> None:
    """All epochs, the last smaller batch too, tested after each; nothing is projected."""
    done = bench("run", *TRAIN, "--data", "folder:images", "--epochs", "2", "--full")
    record = done.cases[0]
    assert len(record["test_accuracy"]) == len(record["epoch_train_s"]) == 2
    assert all(0 <= a <= 1 for a in record["test_accuracy"])
    assert record["train_s"] == pytest.approx(sum(record["epoch_train_s"]))
    assert record["projected_s"] is None
    assert record["throughput_images_per_s"] == pytest.approx(80 / record["train_s"])
    parts = sum(record[name] for name in ("data_wait_s", "copy_s", "compute_s"))
    assert parts * 20 == pytest.approx(record["train_s"], rel=0.1)


def test_a_projection_counts_each_boundary_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that contain two boundaries of 0.5 s: steps of 0.1 s, ten an epoch, three epochs."""
    from types import SimpleNamespace

    from bench import observe
    from bench.measure import Throughput
    from bench.schema import Case

    # (10 x 0.1 + 2 x 0.5) / 10
    taken = Throughput(0.1, [0.2] * 10, 1, 0, [""] * 10, True, "max_seconds")
    fed = SimpleNamespace(split=lambda _: (0.0, 0.0, 0.1), boundaries=lambda _: 2, marks=range(12))
    work = SimpleNamespace(fed=fed, batches=SimpleNamespace(dataset=range(40)), short=None)
    monkeypatch.setattr(observe, "epoch_boundary_s", lambda *_: 0.5)
    case = Case(task="train", batch_size=4, epochs=3, loader_workers=0)
    found = observe.feeding_facts(None, work, taken, taken.estimate(0.02), case)  # type: ignore[arg-type]
    assert found["projected_s"] == pytest.approx(3 * (10 * 0.1 + 0.5))


def test_full_training_of_synthetic_images(bench: Bench) -> None:
    """Whole epochs come through a loader, whatever the data."""
    done = bench("run", *TRAIN, "--epochs", "1", "--dry-run", "--full")
    assert "loader_workers=0/epochs=1/full" in done.out


def test_without_test_images_there_is_no_test_accuracy(bench: Bench, images: Path) -> None:
    """Null and a warning, not the accuracy on the training images."""
    done = bench("run", *TRAIN, "--data", "folder:images/train", "--epochs", "1", "--full")
    assert done.cases[0]["test_accuracy"] is None
    assert "no_test_images" in done.cases[0]["warnings"]


def test_test_images_are_numbered_as_training_images(tmp_path: Path, images: Path) -> None:
    """A class that is missing in test/ shifts nothing; a class that only test/ has is refused."""
    import shutil

    from bench.data import folder
    from bench.errors import Refused
    from bench.schema import Case

    shutil.rmtree(images / "test" / "cat")
    source = folder.open_source(str(images), Case())
    assert source.test is not None
    assert source.test[0][1] == 1  # dog, as in train/
    (images / "test" / "dog").rename(images / "test" / "fox")
    with pytest.raises(Refused, match="fox"):
        folder.open_source(str(images), Case())


def test_arrays_are_resized_like_pictures() -> None:
    """The image size of a record is the size that was run."""
    import numpy as np

    from bench.loading import Decoded

    class Arrays:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[object, int]:
            return np.zeros((64, 48, 3), np.uint8), 0

        def name(self, index: int) -> str:
            return "array"

    assert Decoded(Arrays(), 32)[0][0].shape == (3, 32, 32)


def test_int8_that_is_not_int8_fails() -> None:
    """Under half of the multiply-adds in INT8 is no INT8 number: an error, not a skip."""
    import torch

    from bench.engines import _torch_int8
    from bench.errors import Refused, Unproven
    from bench.models import build

    model = build("resnet18", "random", 1000, seed=1).eval()
    lowered = object.__new__(_torch_int8.Int8)
    lowered.model = lowered.run = model  # runs in fp32
    lowered.images, lowered.facts = torch.randn(1, 3, 64, 64), {}
    with pytest.raises(Unproven, match="only 0%"):
        lowered.evidence()
    assert not issubclass(Unproven, Refused)


def test_the_order_of_data_does_not_depend_on_the_loader(bench: Bench, images: Path) -> None:
    """None, one or two workers: the same losses over an epoch's end, bit for bit."""
    case = [*TINY, "--task", "train", "--batch-size", "8", "--json", "--data", "folder:images"]
    # Five steps an epoch.
    case += ["--threads", "1", "--loader-workers", "0,1,2"]
    done = bench("run", *case, "--epochs", "2", "--full")
    assert len({(r["first_loss"], r["last_loss"]) for r in done.cases}) == 1
    assert {r["last_loss_step"] for r in done.cases} == {10}


def test_data_that_cannot_fill_a_batch_says_so(bench: Bench, images: Path) -> None:
    """Never a silently smaller batch."""
    done = bench("run", *TRAIN[:-2], "64", "--data", "folder:images", "--json")
    assert done.code == 3
    assert "40 images are fewer than one batch of 64" in done.cases[0]["reason"]


def test_nothing_but_corrupt_images_says_so(bench: Bench, tmp_path: Path) -> None:
    """The sentence survives the loader's worker process."""
    folder = tmp_path / "bad" / "cat"
    folder.mkdir(parents=True)
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(b"no")
    done = bench("run", *TRAIN, "--data", "folder:bad")
    assert done.cases[0]["status"] == "skipped"
    assert done.cases[0]["reason"].startswith("8 images in a row could not be decoded")


def test_cifar10_absent_and_offline_says_how_to_get_it(bench: Bench) -> None:
    """Skipped with the way out; a proxy that refuses stands for a machine without a network."""
    closed = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = bench("run", *TRAIN, "--data", "cifar10", env=closed)
    assert done.code == 3
    assert "--data folder:DIR" in done.cases[0]["reason"]
    assert "cifar-10-python.tar.gz" in done.cases[0]["reason"]


def test_weights_from_a_file(bench: Bench, tmp_path: Path) -> None:
    """A state dict loads; one of another model is refused; a pickle that runs code never runs."""
    import torch

    from bench import models

    model = models.build("resnet18", "random", 1000, seed=9)
    torch.save(model.state_dict(), tmp_path / "good.pt")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "empty.pt").touch()

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    done = bench("run", *TINY, "--weights", "good.pt,other.pt,evil.pt,empty.pt", "--json")
    assert [r["status"] for r in done.cases] == ["measured", *["skipped"] * 3]
    assert done.cases[0]["weights_sha256"] == models.weights_sha256(model)
    assert all("do not fit" in r["reason"] for r in done.cases[1:])
    assert not (tmp_path / "pwned").exists()


# Trainable parameters: torchvision 0.29.1's weights meta; 10 classes and CIFAR stem computed
# from its models.
PARAMETERS = {
    ("resnet18", 1000): 11_689_512,
    ("resnet34", 1000): 21_797_672,
    ("resnet50", 1000): 25_557_032,
    ("resnet101", 1000): 44_549_160,
    ("resnet152", 1000): 60_192_808,
    ("resnet18_cifar", 10): 11_173_962,
    ("resnet50_cifar", 10): 23_520_842,
}


@pytest.mark.parametrize(("name", "classes"), PARAMETERS)
def test_models_are_what_their_names_say(name: str, classes: int) -> None:
    """Parameters, stem, and the last feature map that refusals count on."""
    import torch

    from bench import models

    model = models.build(name, "random", classes, seed=1)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name, classes]
    sides = []
    model.layer4.register_forward_hook(lambda *args: sides.append(args[-1].shape[-1]))
    model.eval()(torch.zeros(1, 3, 64, 64))
    assert sides == [models.last_side(name, 64)]


def test_int8_is_int8(bench: Bench) -> None:
    """Nearly all multiply-adds ran in INT8; random weights prove no fidelity."""
    done = bench("run", *TINY, "--precision", "int8", "--task", "infer,train", "--json")
    infer, train = done.cases
    assert infer["status"] == "measured"
    assert infer["int8_mac_share"] > 0.9
    assert infer["build_s"] > 0
    assert "fidelity_unproven" in infer["warnings"]
    assert train["status"] == "skipped"
    assert "--precision fp32" in train["reason"]


def test_int8_macs_are_counted_from_the_profile(tmp_path: Path) -> None:
    """The counter of executed INT8 kernels agrees with torch's own count of the fp32 model."""
    import torch

    from bench import pt2e
    from bench.cache import Cache
    from bench.engines import _macs
    from bench.engines.eager import int8
    from bench.models import build

    model = build("resnet18", "random", 1000, seed=1).eval()
    images = torch.randn(2, 3, 64, 64)
    graph = int8._lowered(pt2e.calibrated(model, [images], Cache(tmp_path), {}), images)
    kernels = pt2e.executed(graph, images)
    assert sum(macs for _, macs, _ in kernels) == pytest.approx(_macs.of_model(model, images))
    assert all(in_int8 for _, _, in_int8 in kernels)
    in_float = pt2e.executed(model, images)  # fp32 kernels do not count, but are named
    assert len(in_float) == 21
    assert not any(in_int8 for _, _, in_int8 in in_float)


def test_tf32_and_single_image_batches_are_refused_with_the_way_out(bench: Bench) -> None:
    """Reasons name what would work."""
    tf32 = bench("run", *TINY, "--precision", "tf32", "--json").cases[0]
    assert "use --precision fp32" in tf32["reason"]
    single = bench("run", *TINY, "--task", "train", "--json").cases[0]
    assert "--batch-size 2" in single["reason"]


def test_dry_run_measures_nothing(bench: Bench, tmp_path: Path, images: Path) -> None:
    """Cases and reasons, no record, no folder."""
    done = bench("run", *TINY, "--precision", "fp32,tf32", "--dry-run")
    assert done.code == 0
    assert "would run" in done.out
    assert "skipped: TF32" in done.out
    few = bench("run", *TINY, "--data", "folder:images", "--classes", "1", "--dry-run")
    assert "the data has 2 classes, the model only 1" in few.out
    device = bench("run", *TINY, "--device", "cpu,cpu:7", "--dry-run")
    assert "skipped: cpu:7: there is one CPU device" in device.out
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


def breaking(folder: Path, package: str) -> dict[str, str]:
    """The environment of a machine where importing a package fails."""
    broken = folder / "broken" / package
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    return {"PYTHONPATH": str(broken.parent)}


def test_a_broken_torch_is_a_sentence(bench: Bench, tmp_path: Path) -> None:
    """Where torch cannot be used at all the reason is said once, exit 3."""
    done = bench("run", *TINY, env=breaking(tmp_path, "torch"))
    assert done.code == 3
    assert "could not be examined" in done.err
    assert "operator nms does not exist" in done.err


def test_a_broken_torchvision_is_a_failed_record(bench: Bench, tmp_path: Path) -> None:
    """A torchvision that does not fit its torch: the record holds the reason, exit 4."""
    done = bench("run", *TINY, "--json", env=breaking(tmp_path, "torchvision"))
    assert done.code == 4
    assert "operator nms does not exist" in done.cases[0]["reason"]


def test_a_broken_runtime_takes_no_other_engine_with_it(bench: Bench, tmp_path: Path) -> None:
    """Its own cases are skipped with the reason, which doctor says too."""
    env = breaking(tmp_path, "onnxruntime")
    done = bench("run", *TINY, "--engine", "eager,onnxruntime", "--json", env=env)
    assert done.code == 0
    assert [r["status"] for r in done.cases] == ["measured", "skipped"]
    assert "operator nms does not exist" in done.cases[1]["reason"]
    said = bench("doctor", env=env)
    assert said.code == 0
    assert "operator nms does not exist" in said.out


def test_doctor_says_what_works_and_what_is_noisy(bench: Bench) -> None:
    """Devices, engines, precisions with reasons, and the machine's noise."""
    done = bench("doctor")
    assert done.code == 0
    for text in ("cpu ", "eager int8", "tf32 on cpu", "What makes numbers noisy"):
        assert text in done.out


def test_list_of_an_unknown_kind(bench: Bench) -> None:
    """With the closest match."""
    done = bench("list", "device")
    assert done.code == 2
    assert "did you mean 'devices'?" in done.err
