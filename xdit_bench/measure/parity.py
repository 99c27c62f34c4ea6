"""Whether a point computed the right image: its distance from the one-GPU result of the same seed and inputs.

Owns the distances, the bounds and the reference files; which point is a reference is the runner's to say.

    save_result(path, latents, image, made_by="stock u1r1")
    compare(latents, image, path, dtype="bf16", exact_image=True)  # {"ok": True, "latents_rel_l2": ...}
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

LATENTS_BOUND = {"fp32": 1e-4, "bf16": 5e-2}
# pixels of 0..255: fp32 differs by rounding alone; bf16 latents differ visibly on random weights, so only an image
# that has nothing to do with the reference (unrelated images are at 1.4) is called wrong
IMAGE_MAX_ABS = 2
IMAGE_BOUND = 0.5


def save_result(path: Path, latents: torch.Tensor, image: torch.Tensor | None, made_by: str) -> None:
    """Latents B I 64 and uint8 image H W 3 into one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"latents": latents.detach().cpu().contiguous()}
    if image is not None:
        tensors["image"] = image.detach().cpu().contiguous()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(tensors, str(part), metadata={"made_by": made_by})
    part.replace(path)


def compare(
    latents: torch.Tensor, image: torch.Tensor | None, reference: Path, *, dtype: str, exact_image: bool
) -> dict[str, Any]:
    """Distances and the verdict `ok`, with `reason` when it is not.

    `exact_image=False` (a tiled decode) records the image's distance and judges the latents alone.
    """
    with safe_open(str(reference), "pt") as file:
        made_by = (file.metadata() or {}).get("made_by", "")
        wanted = file.get_tensor("latents")
        wanted_image = file.get_tensor("image") if "image" in file.keys() else None  # noqa: SIM118
    bound = LATENTS_BOUND[dtype]
    distance = relative_l2(latents, wanted)
    verdict: dict[str, Any] = {"reference": made_by, "latents_rel_l2": distance, "latents_bound": bound}
    verdict["reason"] = ""
    if not distance <= bound:  # also when it is NaN
        verdict["reason"] = f"the latents' relative L2 to {made_by} is {distance:.2e}, above {bound:g} for {dtype}"
    if image is not None and wanted_image is not None and image.shape != wanted_image.shape:
        sizes = [f"{height}x{width}" for height, width, _ in (image.shape, wanted_image.shape)]
        verdict["reason"] = (
            verdict["reason"] or f"the image is {sizes[0]} (height x width), that of {made_by} {sizes[1]}"
        )
    elif image is not None and wanted_image is not None:
        difference = (image.cpu().int() - wanted_image.int()).abs()
        verdict["image_max_abs"] = int(difference.max())
        verdict["image_rel_l2"] = contrast_l2(image, wanted_image)
        wrong = verdict["image_max_abs"] > IMAGE_MAX_ABS if dtype == "fp32" else verdict["image_rel_l2"] > IMAGE_BOUND
        if exact_image and wrong and not verdict["reason"]:
            verdict["reason"] = (
                f"the latents are right but the image is not: its pixels differ from {made_by} by up to "
                f"{verdict['image_max_abs']} of 255 (relative L2 {verdict['image_rel_l2']:.2e}); look at vae="
            )
    return {**verdict, "ok": not verdict["reason"]}


def from_truth(latents: torch.Tensor, truth: Path) -> dict[str, float]:
    """`fp32_rel_l2`: how far latents of a coarser format are from those of the same point in fp32, where they are kept.

    It says what a number format and an engine's order of operations cost; nothing is judged by it.
    """
    if not truth.exists():
        return {}
    with safe_open(str(truth), "pt") as file:
        return {"fp32_rel_l2": relative_l2(latents, file.get_tensor("latents"))}


def relative_l2(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """||got - wanted|| / ||wanted||, in fp64; infinite when shapes differ, NaN when anything is not finite."""
    if got.shape != wanted.shape:
        return float("inf")
    a, b = got.detach().double().cpu(), wanted.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def contrast_l2(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """||got - wanted|| over the spread of `wanted` around its mean: about 1.4 for unrelated images."""
    a, b = got.detach().cpu().double(), wanted.detach().cpu().double()  # eightfold on the host: a GPU may be full
    return float((a - b).norm() / (b - b.mean()).norm().clamp_min(1e-12))


def finite(tensor: torch.Tensor) -> bool:
    """No NaN and no infinity."""
    return bool(torch.isfinite(tensor).all())
