"""How near an engine's answers, logits `(inputs, classes)`, are to eager fp32's.

On random weights logits hardly depend on the input: a raw signal-to-noise ratio looks
splendid and every answer is the same class. So the ratio is of logits centred over the
inputs, and agreement is stated only where fp32 predicts at least half of its classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy
import torch
from msgspec import Struct

from bench import data
from bench.cache import Cache
from bench.errors import Unproven
from bench.precisions import Precision
from bench.schema import Budget, Case

Reference = Callable[[torch.Tensor], torch.Tensor]  # images on the host → logits on the host
CHECKED = 4  # images whose logits are compared before timing; in evaluation mode each is its own
# The second input before timing is the first one's negative at half its contrast. On random
# weights two images' logits may be 2 % apart, less than INT8 rounds; these are 50 % apart. More
# contrast than INT8 was calibrated for would be cut off.
CONTRAST = -0.5
# Share of fp32's change from the first to the second that an engine's may be off by. A stale
# answer is off by all of it; INT8 by 5 to 12 % (ResNet-50 at 224 px, ResNet-18 at 32).
MOST_ASTRAY = 0.5


class Fidelity(Struct, frozen=True, kw_only=True):
    """Against eager fp32 on the same inputs. None where it would say nothing."""

    images: int
    sqnr_db: float | None  # None: no difference at all, or fp32's logits never vary
    agreement: float | None
    agreement_note: str | None
    accuracy: float | None  # None where the data has no classes of its own
    fp32_accuracy: float | None


def compare(expected: torch.Tensor, found: torch.Tensor, labels: torch.Tensor | None) -> Fidelity:
    """expected: eager fp32's logits `(N, classes)`; labels: the inputs' classes `(N,)`."""
    best, ours = expected.argmax(1), found.argmax(1)
    note = _empty(best, expected.shape[1])
    return Fidelity(
        images=len(expected),
        sqnr_db=centred_sqnr_db(expected, found),
        agreement=None if note else _share(ours == best),
        agreement_note=note,
        accuracy=None if labels is None else _share(ours == labels),
        fp32_accuracy=None if labels is None else _share(best == labels),
    )


def centred_sqnr_db(expected: torch.Tensor, found: torch.Tensor) -> float | None:
    """10·log10 of the variance over inputs of `expected` ÷ that of the difference."""
    signal, error = (t.double() - t.double().mean(0) for t in (expected, found - expected))
    power, noise = float(signal.square().sum()), float(error.square().sum())
    return 10 * math.log10(power / noise) if power > 0 and noise > 0 else None


def _empty(best: torch.Tensor, classes: int) -> str | None:
    """Why agreement would say nothing, or None."""
    seen = len(set(best.tolist()))
    if _enough(seen, classes):
        return None
    return f"fp32 predicts {seen} of {classes} classes on {len(best)} inputs"


def _enough(seen: int, classes: int) -> bool:
    """Whether so many different answers make agreement say something."""
    return 2 * seen >= classes


def inputs(classes: int, asked: int | None, held: int) -> tuple[int, str | None]:
    """On how many inputs to judge agreement, and why that could never say anything, or None.

    asked: None takes twice the classes, of which a network that has learnt them predicts about
    86 %, and no fewer than usual. held: images the data has.
    """
    wanted = max(Budget().fidelity_images, 2 * classes)
    count = min(asked or wanted, held)
    if _enough(count, classes):
        return count, None
    more = "name more images with --data" if held <= count else f"give --fidelity-images {wanted}"
    return count, (
        f"{count} inputs show at most {count} of the model's {classes:,} classes, and agreement is "
        f"stated only where fp32 predicts half of them; {more}"
    )


def main(connection: Connection, payload: bytes) -> None:
    """Answer `[case, asked]`, in a child that may open the case's data, as `inputs` does."""
    case, asked = msgspec.json.decode(payload, type=tuple[Case, int | None])
    source = data.open_source(case)
    # Without a test folder those that calibrate are not judged by.
    held = len(source.test) if source.test else len(source.train) - case.calibration_images
    answer = inputs(case.classes or source.classes, asked, max(0, held))
    connection.send_bytes(msgspec.json.encode(answer))


def _share(right: torch.Tensor) -> float:
    return float(right.double().mean())


def eager_fp32(model: torch.nn.Module) -> Reference:
    """Eager fp32 on the host, which every engine must agree with."""
    own = next(model.parameters()).device
    twin = (model if own.type == "cpu" else copy.deepcopy(model).cpu()).eval()

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = twin(images)
        return found

    return logits


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    found = logits.detach().float().cpu()
    return float((found - expected).norm() / expected.norm())


def demand(error: float, precision: Precision) -> None:
    """A fast wrong answer is no answer. Raises Unproven."""
    if not error <= precision.tolerance:  # NaN is a wrong answer too
        raise Unproven(
            f"its logits differ from eager fp32 by {error:.2g} of their size, {precision.name} may "
            f"by {precision.tolerance:g}: a wrong answer is not a measurement"
        )


def demand_following(change: torch.Tensor, expected: torch.Tensor) -> None:
    """An answer that does not follow its input is none. Raises Unproven.

    change: from the logits of one input to those of another; expected: the same of eager fp32.
    """
    error = difference(change, expected)
    if not error <= MOST_ASTRAY:
        raise Unproven(
            f"its logits do not follow the input: from one to another they change otherwise than "
            f"eager fp32's, by {error:.2g} of that change: a wrong answer is not a measurement"
        )


def kept_logits(
    reference: Reference, inputs: list[torch.Tensor], cache: Cache, key: dict[str, Any]
) -> torch.Tensor:
    """What `reference` says of the inputs, computed once for a key."""
    kept: list[torch.Tensor] = []

    def compute(folder: Path) -> None:
        kept.append(torch.cat([reference(images) for images in inputs]))
        numpy.save(folder / "logits.npy", kept[0].numpy(), allow_pickle=False)

    def load(folder: Path) -> None:
        kept.append(torch.from_numpy(numpy.load(folder / "logits.npy", allow_pickle=False)))

    cache.artefact("reference", key, compute, load)
    return kept[-1]
