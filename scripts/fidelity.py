"""A network that has learnt something, in INT8 on each engine: does it answer as before?

On random weights agreement is empty (bench.fidelity), so this trains a ResNet-18 (ImageNet
stem, 32 px) on class folders of real images and has `bench run` compare each engine's INT8
with eager fp32 on test images: agreement must be 98 % or more and at most one point of
accuracy may be lost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[1]
SIDE, BATCH, SEED = 32, 128, 42
LEAST_AGREEMENT, MOST_LOST = 0.98, 0.01
ENGINES = "eager,compile,onnxruntime,openvino"
PLAN = """# INT8 of a trained network on every engine
budget = "quick"
[budget_overrides]
max_seconds = 3.0
latency_seconds = 1.0
fidelity_images = {images}

[[cases]]
model = ["resnet18"]
image_size = [{side}]
precision = ["fp32", "int8"]
batch_size = [8]
calibration_images = [256]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", required=True, help="folder of class folders: train/ and test/")
    parser.add_argument("--weights", type=Path, help="a network trained before")
    parser.add_argument("--keep", type=Path, help="where to keep the weights")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=2000, help="test images compared")
    parser.add_argument("--engine", default=ENGINES)
    parser.add_argument("--out", type=Path, help="Markdown file to write, e.g. docs/fidelity.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        weights = asked.weights
        if weights is None:
            weights = asked.keep or Path(scratch) / "resnet18.pt"
            train(asked.data, weights, asked.epochs)
        rows = measure(asked, weights, Path(scratch))
    text = table(rows)
    print(text)
    if asked.out:
        asked.out.write_text(document(text, asked.images), encoding="utf-8")
    return int(not all(passes(r) for r in rows if r["precision"] == "int8"))


def train(data: str, weights: Path, epochs: int) -> None:
    """SGD with a one-cycle rate and random flips; writes a state dict."""
    import torch

    from bench import models
    from bench.data import open_source
    from bench.loading import Decoded
    from bench.schema import Case

    torch.manual_seed(SEED)
    case = Case(model="resnet18", data=f"folder:{data}", image_size=SIDE)
    source = open_source(case)
    images, labels = loaded(Decoded(source.train, SIDE))
    model = models.build("resnet18", "random", source.classes, SEED)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = len(images) // BATCH
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    begun = time.perf_counter()
    for epoch in range(epochs):
        order, right, seen = torch.randperm(len(images)), 0, 0
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            batch = images[chosen]
            if step % 2:
                batch = batch.flip(3)
            logits = model(batch.to(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            right += int((logits.argmax(1) == labels[chosen]).sum())
            seen += BATCH
        print(
            f"epoch {epoch + 1} of {epochs}: {100 * right / seen:.1f} % of training images right, "
            f"{time.perf_counter() - begun:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    torch.save(model.state_dict(), weights)


def loaded(decoded: Any) -> tuple[Any, Any]:
    """All images in memory, as the harness decodes them."""
    import torch

    batches = torch.utils.data.DataLoader(decoded, batch_size=500, num_workers=2, collate_fn=pick)
    found = list(batches)
    return torch.cat([i for i, _ in found]), torch.cat([t for _, t in found])


def pick(items: list[Any]) -> tuple[Any, Any]:
    """Images and classes of a batch."""
    import torch

    return torch.stack([i for i, _, _ in items]), torch.tensor([t for _, t, _ in items])


def measure(asked: argparse.Namespace, weights: Path, scratch: Path) -> list[dict[str, Any]]:
    """By the public command; QAT where torch converts it."""
    plan = scratch / "fidelity.toml"
    plan.write_text(PLAN.format(images=asked.images, side=SIDE), encoding="utf-8")
    common = [
        sys.executable, "-m", "bench", "run", "--plan", str(plan), "--device", "cpu",
        "--data", f"folder:{asked.data}", "--weights", str(weights),
        "--results", str(scratch / "results"), "--json",
    ]  # fmt: skip
    torchs = ",".join(e for e in asked.engine.split(",") if e in ("eager", "compile"))
    arguments = [["--engine", asked.engine]]
    if torchs:
        arguments.append(["--engine", torchs, "--recipe", "qat", "--precision", "int8"])
    rows: list[dict[str, Any]] = []
    for more in arguments:
        done = subprocess.run(
            [*common, *more], stdout=subprocess.PIPE, text=True, check=False, cwd=TOP
        )
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    return [r for r in rows if r["purpose"] == "grid"]


def passes(row: dict[str, Any]) -> bool:
    """Agreement and accuracy as promised; a case without a number has not passed."""
    if row["status"] != "measured" or row["top1_agreement"] is None:
        return False
    lost = row["fp32_top1_accuracy"] - row["top1_accuracy"]
    return row["top1_agreement"] >= LEAST_AGREEMENT and lost <= MOST_LOST


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line an INT8 case."""
    lines = [
        "| engine | images | top-1 as fp32 | accuracy fp32 → INT8 | centred SQNR | MACs in INT8 "
        "| size ÷ | calibration | promise |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    files = {r["engine"]: r["model_bytes"] for r in rows if r["precision"] == "fp32"}
    for r in rows:
        if r["precision"] != "int8":
            continue
        name = r["engine"] + (", QAT" if r["recipe"] == "qat" else "")
        if r["status"] != "measured" or r["top1_agreement"] is None:
            reason = r["reason"] or r["top1_agreement_note"]
            lines.append(f"| {name} | – | – | – | – | – | – | – | {r['status']}: {reason} |")
            continue
        fp32 = files.get(r["engine"]) or r["fp32_model_bytes"]
        lines.append(
            f"| {name} | {r['fidelity_images']:,} | {100 * r['top1_agreement']:.2f} % "
            f"| {100 * r['fp32_top1_accuracy']:.2f} → {100 * r['top1_accuracy']:.2f} % "
            f"| {r['fidelity_sqnr_db']:.1f} dB | {100 * r['int8_mac_share']:.1f} % "
            f"| {fp32 / r['model_bytes']:.2f} "
            f"| {r['calibrated_images']} images, {r['calibration_s']:.1f} s "
            f"| {'kept' if passes(r) else 'broken'} |"
        )
    return "\n".join(lines)


def document(text: str, images: int) -> str:
    """The page around the table."""
    return f"""# What INT8 does to the answers

Made by `./scripts/fidelity --data DIR --out docs/fidelity.md` with the 60,000 images of CIFAR-10
as class folders: a ResNet-18 (ImageNet stem, 10 classes, 32 px) trained for a few epochs, then each
engine's INT8 against eager fp32 on {images:,} test images. The promise is at least 98 % agreement
and at most one point of accuracy lost. SQNR is of the logits centred over the inputs
(bench/fidelity.py says why).

{text}
"""


if __name__ == "__main__":
    sys.exit(main())
