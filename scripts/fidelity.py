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
import textwrap
import time
from pathlib import Path
from typing import Any

from bench import models, words
from bench.environment import software
from bench.errors import BenchError
from bench.precisions import QAT

TOP = Path(__file__).parents[1]
MODEL, SIDE, BATCH, SEED = "resnet18", 32, 128, 42
LEAST_AGREEMENT, MOST_LOST = 0.98, 0.01
ENGINES = "eager,compile,onnxruntime,openvino"
TORCH = ("eager", "compile")  # they convert what torch has trained for INT8
WRAPPED: Any = {"width": 100, "break_on_hyphens": False, "break_long_words": False}
VERSIONS = ("torch", "torchao", "onnxruntime", "openvino")  # columns of a record
PLAN = """# INT8 of a trained network on every engine
budget = "quick"
[budget_overrides]
max_seconds = 3.0
latency_seconds = 1.0
fidelity_images = {images}

[[cases]]
model = ["{model}"]
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
    parser.add_argument("--epochs", type=int, default=6, help="of training")
    parser.add_argument("--images", type=int, default=2000, help="test images compared")
    parser.add_argument("--engine", default=ENGINES, help="which ones, joined by commas")
    parser.add_argument("--out", type=Path, help="Markdown file to write, e.g. docs/fidelity.md")
    asked = parser.parse_args()
    if asked.weights and not asked.weights.is_file():
        parser.error(f"--weights: there is no file {asked.weights}")
    check(parser, asked)
    with tempfile.TemporaryDirectory() as scratch:
        weights, trained = asked.weights, ""
        if weights is None:
            weights = asked.keep or Path(scratch) / f"{MODEL}.pt"
            trained = train(asked.data, weights, asked.epochs)
        rows = measure(asked, weights, Path(scratch))
    text = table(rows)
    print(text)
    if lacking := unmeasured(rows, asked.engine.split(",")):
        print("\n".join(lacking), file=sys.stderr)
        return 1
    if asked.out:
        asked.out.write_text(document(text, rows, command(asked), trained), encoding="utf-8")
    return int(not all(passes(r) for r in rows if r["precision"] == "int8"))


def check(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """What would fail only after the training."""
    from bench.data import folder, open_source
    from bench.schema import Case

    if asked.epochs < 1 or asked.images < 1:
        parser.error("--epochs and --images: expected 1 or more")
    if unknown := set(asked.engine.split(",")) - set(ENGINES.split(",")):
        parser.error(f"--engine: expected some of {ENGINES}, not {', '.join(sorted(unknown))}")
    for flag, file in (("--out", asked.out), ("--keep", asked.keep)):
        if file and not file.parent.is_dir():
            parser.error(f"{flag}: there is no folder {file.parent}")
        if file and file.is_dir():
            parser.error(f"{flag}: {file} is a folder; name a file")
    try:
        folder.check(asked.data)
        source = open_source(Case(model=MODEL, data=f"folder:{asked.data}", image_size=SIDE))
    except BenchError as error:
        parser.error(f"--data: {error}")
    if source.test is None or len(source.test) < asked.images:
        there = 0 if source.test is None else len(source.test)
        parser.error(
            f"--data: {asked.images:,} test images are compared, and its folder test has "
            f"{there:,}. Those of the training prove nothing; --images N compares fewer."
        )


def command(asked: argparse.Namespace) -> str:
    """What makes the page again, with names of files and folders alone."""
    parts = ["./scripts/fidelity", f"--data {Path(asked.data).name}"]
    parts.append(f"--weights {asked.weights.name}" if asked.weights else f"--epochs {asked.epochs}")
    parts += [f"--engine {asked.engine}"] if asked.engine != ENGINES else []
    return " ".join([*parts, f"--images {asked.images}"])


def train(data: str, weights: Path, epochs: int) -> str:
    """SGD with a one-cycle rate and random flips; writes a state dict and says what it is."""
    import torch

    from bench.data import open_source
    from bench.loading import Decoded
    from bench.schema import Case

    torch.manual_seed(SEED)
    case = Case(model=MODEL, data=f"folder:{data}", image_size=SIDE)
    source = open_source(case)
    images, labels = loaded(Decoded(source.train, SIDE))
    model = models.build(MODEL, "random", source.classes, SEED)
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
    return (
        f"trained for {epochs} epochs on the {len(images):,} training images of "
        f"`{Path(data).name}` ({source.classes} classes)"
    )


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
    text = PLAN.format(images=asked.images, model=MODEL, side=SIDE)
    plan.write_text(text, encoding="utf-8")
    common = [
        sys.executable, "-m", "bench", "run", "--plan", str(plan), "--device", "cpu",
        "--data", f"folder:{asked.data}", "--weights", str(weights),
        "--results", str(scratch / "results"), "--json",
    ]  # fmt: skip
    torchs = ",".join(e for e in asked.engine.split(",") if e in TORCH)
    arguments = [["--engine", asked.engine]]
    if torchs:
        arguments.append(["--engine", torchs, "--recipe", QAT, "--precision", "int8"])
    rows: list[dict[str, Any]] = []
    for more in arguments:
        done = subprocess.run(
            [*common, *more], stdout=subprocess.PIPE, text=True, check=False, cwd=TOP
        )
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    return [r for r in rows if r["purpose"] == "grid"]


def unmeasured(rows: list[dict[str, Any]], engines: list[str]) -> list[str]:
    """A sentence for each engine's INT8, trained or not, that has no agreement to show."""
    found = {(r["engine"], r["recipe"] == QAT): r for r in rows if r["precision"] == "int8"}
    wanted = [(e, False) for e in engines] + [(e, True) for e in engines if e in TORCH]
    lacking = []
    for engine, trained in wanted:
        row = found.get((engine, trained))
        if row is None:
            lacking.append(f"{name(engine, trained)}: bench run gave no record of its INT8.")
        elif row["status"] != "measured" or row["top1_agreement"] is None:
            lacking.append(f"{name(engine, trained)}: {row['status']}: {reason(row)}.")
    return lacking


def name(engine: str, trained: bool) -> str:
    """An engine, and whether its INT8 was trained."""
    return engine + (", QAT" if trained else "")


def reason(row: dict[str, Any]) -> str:
    """Why a row has no agreement."""
    return str(row["reason"] or row["top1_agreement_note"] or "its answers were not compared")


def passes(row: dict[str, Any]) -> bool:
    """Agreement and accuracy as promised; a case without a number has not passed."""
    known = (row["top1_agreement"], row["fp32_top1_accuracy"], row["top1_accuracy"])
    if row["status"] != "measured" or None in known:
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
        said = name(r["engine"], r["recipe"] == QAT)
        if r["status"] != "measured" or r["top1_agreement"] is None:
            lines.append(f"| {said} | – | – | – | – | – | – | – | {r['status']}: {reason(r)} |")
            continue
        fp32, own = files.get(r["engine"]) or r["fp32_model_bytes"], r["model_bytes"]
        lines.append(
            f"| {said} | {r['fidelity_images']:,} | {percent(r['top1_agreement'])} "
            f"| {percent(r['fp32_top1_accuracy'])} → {percent(r['top1_accuracy'])} "
            f"| {words.decibels(r['fidelity_sqnr_db'])} | {percent(r['int8_mac_share'])} "
            f"| {f'{fp32 / own:.2f}' if fp32 and own else words.DASH} "
            f"| {words.count(r['calibrated_images'])} images, {words.duration(r['calibration_s'])} "
            f"| {'kept' if passes(r) else 'broken'} |"
        )
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """97.65 %; a dash where it was not measured."""
    return words.DASH if share is None else f"{100 * share:.2f} %"


def document(text: str, rows: list[dict[str, Any]], made_by: str, trained: str) -> str:
    """The page around the table, told from the records. trained: on what, and how long."""
    int8 = [r for r in rows if r["precision"] == "int8"]
    compared = " or ".join(f"{n:,}" for n in sorted({r["fidelity_images"] for r in int8}))
    network = f"{models.describe()[int8[0]['model']]}, at {int8[0]['image_size']} px"
    versions = [f"{n} {fact(rows, n)}" for n in VERSIONS if fact(rows, n)]
    if nncf := software.version("nncf"):  # no column of a record
        versions.append(f"nncf {nncf}")
    how = textwrap.fill(
        f"Made by `{made_by} --out FILE`: {network}, {trained or 'with weights trained before'}, "
        f"then each engine's INT8 against eager fp32 on {compared} test images. The promise is at "
        f"least {100 * LEAST_AGREEMENT:g} % agreement and at most {100 * MOST_LOST:g} point of "
        "accuracy lost. SQNR is of the logits centred over the inputs (bench/fidelity.py).",
        **WRAPPED,
    )
    where = textwrap.fill(
        f"With {', '.join(versions)} on {fact(rows, 'cpu_model')} "
        f"({fact(rows, 'cpu_cores_usable')} cores, "
        f"{', '.join(int8[0]['cpu_features'] or ['instruction sets not known'])}).",
        **WRAPPED,
    )
    return f"# What INT8 does to the answers\n\n{how}\n\n{text}\n\n{where}\n"


def fact(rows: list[dict[str, Any]], column: str) -> str:
    """What the records say in a column; empty where none says anything."""
    return " or ".join(dict.fromkeys(str(r[column]) for r in rows if r[column] is not None))


if __name__ == "__main__":
    sys.exit(main())
