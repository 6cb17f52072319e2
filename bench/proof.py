"""What a measured case's numbers can prove: what ran, its results, how near they are to fp32."""

from __future__ import annotations

import time
from typing import Any

import torch

from bench import workload
from bench.messages import Order
from bench.precisions import PRECISIONS
from bench.schema import Case
from bench.training import COMPARED_STEPS, Trainer

NAMES_KEPT = 20  # corrupt images named in a record


def corrupt_facts(work: workload.Work) -> dict[str, Any]:
    """Names of images that could not be decoded."""
    if work.pretend_data:
        return {}
    names = sorted(set(work.corrupt))
    return {"corrupt_images": names[:NAMES_KEPT] or None, "corrupt_image_count": len(names)}


def results(case: Case, work: workload.Work) -> dict[str, Any]:
    """The numerical fingerprint and the proof of what ran."""
    found: dict[str, Any] = {
        "weights_sha256": work.weights_sha256,
        "settings": work.settings,
        "threads_used": torch.get_num_threads(),
        "build_cached": work.build_cached,
    }
    if work.trainer is not None:
        found |= losses(work.trainer, full=case.full)
    if work.forward is not None and work.request is not None:
        logits = work.request().float()
        found |= {"logits_mean": float(logits.mean()), "logits_std": float(logits.std())}
        evidence = work.forward.evidence()
        found |= {
            "output_error": work.output_error,
            "int8_mac_share": evidence.int8_mac_share,
            "int8_float_layers": evidence.float_layers,
            "model_bytes": evidence.model_bytes,
            "fp32_model_bytes": work.fp32_bytes,
            "calibrated_images": evidence.calibrated_images,
            "calibration_s": evidence.calibration_s,
            "settings": work.settings + evidence.settings,
            "threads_used": evidence.threads or torch.get_num_threads(),
        }
    return found


SLOWER_IN_FP32 = 4  # seconds of eager fp32 and of the case itself, in seconds of the case


def fidelity_facts(work: workload.Work, order: Order, images_per_s: float) -> dict[str, Any]:
    """How near the answers are to eager fp32's, where there is time to see."""
    count = order.budget.fidelity_images
    asked = PRECISIONS[order.case.precision].kind != "float" or order.budget.fidelity_of == "all"
    if work.fidelity is None or not count or not asked:
        return {}
    left_s = order.started + order.budget.timeout_s - time.monotonic()
    if SLOWER_IN_FP32 * (count + order.case.batch_size) / images_per_s > left_s:
        return {"top1_agreement_note": "not enough time was left to compare; see --timeout"}
    near = work.fidelity(count)
    if near is None:
        return {
            "top1_agreement_note": "INT8 was shown every image there is, none is left to judge it "
            "by; add a test/ folder or lower --calibration-images"
        }
    return {
        "fidelity_images": near.images,
        "fidelity_sqnr_db": near.sqnr_db,
        "top1_agreement": near.agreement,
        "top1_agreement_note": near.agreement_note,
        "top1_accuracy": near.accuracy,
        "fp32_top1_accuracy": near.fp32_accuracy,
    }


def losses(trainer: Trainer, *, full: bool) -> dict[str, Any]:
    """The first loss, and one the same case always reaches: of a fixed step, or the very last."""
    if trainer.first is None:
        return {}
    last, step = trainer.compared, trainer.compared_at
    if full:
        last, step = trainer.latest, trainer.steps
    elif trainer.scaler is not None and trainer.compared_steps < COMPARED_STEPS:
        last = None
    return {
        "first_loss": float(trainer.first),
        "last_loss": None if last is None else float(last),
        "last_loss_step": None if last is None else step,
    }
