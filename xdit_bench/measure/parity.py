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
# pixels of 0..255: fp32 differs by rounding alone; of bf16 the whole image and its worst row, in units of the contrast.
# Every exact decode of the committed records is within 0.074 (28 steps; 0.03 after four), an unrelated row is at 1.4
IMAGE_MAX_ABS = 2
IMAGE_BOUND = 0.15
ROW_BOUND = 0.5


def save_result(path: Path, latents: torch.Tensor, image: torch.Tensor | None, made_by: str) -> None:
    """Latents B I 64 and uint8 image H W 3 into one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"latents": latents.detach().cpu().contiguous()}
    if image is not None:
        tensors["image"] = image.detach().cpu().contiguous()
    _write(path, tensors, {"made_by": made_by})


def add_image(path: Path, image: torch.Tensor, made_by: str) -> None:
    """Gives a result without an image the first exact one, which need not be of the engine that made its latents."""
    with safe_open(str(path), "pt") as file:
        latents, said = file.get_tensor("latents"), dict(file.metadata() or {})
    _write(path, {"latents": latents, "image": image.detach().cpu().contiguous()}, said | {"image_by": made_by})


def _write(path: Path, tensors: dict[str, torch.Tensor], said: dict[str, str]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(tensors, str(part), metadata=said)
    part.replace(path)


def compare(
    latents: torch.Tensor, image: torch.Tensor | None, reference: Path, *, dtype: str, exact_image: bool
) -> dict[str, Any]:
    """Distances and the verdict `ok`, with `reason` when it is not.

    `exact_image=False` (a tiled decode) records the image's distance and judges the latents alone.
    """
    with safe_open(str(reference), "pt") as file:
        said = file.metadata() or {}
        made_by = said.get("made_by", "")
        image_by = said.get("image_by", made_by)
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
            verdict["reason"] or f"the image is {sizes[0]} (height x width), that of {image_by} {sizes[1]}"
        )
    elif image is not None and wanted_image is not None:
        difference = (image.cpu().int() - wanted_image.int()).abs()
        verdict["image_max_abs"] = int(difference.max())
        verdict["image_rel_l2"], verdict["image_worst_row"] = contrast_l2(image, wanted_image)
        if image_by != made_by:
            verdict["image_reference"] = image_by
        off = verdict["image_rel_l2"] > IMAGE_BOUND or verdict["image_worst_row"] > ROW_BOUND
        wrong = verdict["image_max_abs"] > IMAGE_MAX_ABS if dtype == "fp32" else off
        if exact_image and wrong and not verdict["reason"]:
            verdict["reason"] = (
                f"the latents are right but the image is not: its pixels differ from {image_by} by up to "
                f"{verdict['image_max_abs']} of 255 (relative L2 {verdict['image_rel_l2']:.2e}, of the worst row "
                f"{verdict['image_worst_row']:.2e}); look at vae="
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


def contrast_l2(got: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """||got - wanted|| over the spread of `wanted` around its mean, of H W C and of the worst row: about 1.4 for what
    is unrelated. A row is held to the whole image's spread, as it may be of one colour."""
    a, b = got.detach().cpu().double(), wanted.detach().cpu().double()  # eightfold on the host: a GPU may be full
    spread = float((b - b.mean()).norm().clamp_min(1e-12))
    rows = (a - b).flatten(1).norm(dim=1)
    return float(rows.norm()) / spread, float(rows.max()) / (spread / len(rows) ** 0.5)


def finite(tensor: torch.Tensor) -> bool:
    """No NaN and no infinity."""
    return bool(torch.isfinite(tensor).all())
