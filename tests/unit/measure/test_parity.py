"""The bounds of parity: what passes, what does not, and what a record says about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xdit_bench.measure.parity import ROW_BOUND, add_image, compare, finite, relative_l2, save_result


@pytest.fixture
def reference(tmp_path: Path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 12, 64, generator=generator)
    image = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=generator)
    save_result(tmp_path / "references" / "key.safetensors", latents, image, "stock u1r1 eager")
    return tmp_path / "references" / "key.safetensors", latents, image


@pytest.mark.parametrize(("dtype", "share", "ok"), [
    ("fp32", 5e-5, True), ("fp32", 2e-4, False), ("bf16", 2e-2, True), ("bf16", 6e-2, False),
])  # fmt: skip
def test_latents_are_judged_by_relative_l2_and_the_number_format(reference, dtype: str, share: float, ok: bool) -> None:  # type: ignore[no-untyped-def]
    path, latents, image = reference
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    moved = latents + noise * (share * latents.norm() / noise.norm())
    verdict = compare(moved, image, path, dtype=dtype, exact_image=True)
    assert verdict["ok"] is ok
    assert verdict["latents_rel_l2"] == pytest.approx(share, rel=1e-3)
    assert verdict["reference"] == "stock u1r1 eager"
    assert bool(verdict["reason"]) is not ok


def test_an_image_of_another_size_never_passes(reference) -> None:  # type: ignore[no-untyped-def]
    path, latents, image = reference
    for other, size in ((image[:16], "16x48"), (image.transpose(0, 1), "48x32")):
        for exact in (True, False):
            verdict = compare(latents, other, path, dtype="bf16", exact_image=exact)
            assert verdict["ok"] is False
            assert f"the image is {size}" in verdict["reason"]


def test_nan_never_passes(reference) -> None:  # type: ignore[no-untyped-def]
    path, latents, image = reference
    broken = latents.clone()
    broken[0, 3, 5] = float("nan")
    assert not finite(broken)
    assert compare(broken, image, path, dtype="bf16", exact_image=True)["ok"] is False


def test_wrong_size_never_passes(reference) -> None:  # type: ignore[no-untyped-def]
    path, latents, image = reference
    assert compare(latents[:, :11], image, path, dtype="bf16", exact_image=True)["latents_rel_l2"] == float("inf")


@pytest.mark.parametrize(("dtype", "change", "ok"), [("fp32", 1, True), ("fp32", 40, False), ("bf16", 40, True)])
def test_image_of_right_latents_is_judged_where_the_decode_is_exact(
    reference, dtype: str, change: int, ok: bool
) -> None:  # type: ignore[no-untyped-def]
    path, latents, image = reference
    other = image.clone()
    other[4, 5, 1] = (int(image[4, 5, 1]) + change) % 256
    assert compare(latents, other, path, dtype=dtype, exact_image=True)["ok"] is ok
    assert compare(latents, other, path, dtype=dtype, exact_image=False)["ok"] is True


def test_unrelated_image_is_wrong_in_bf16_too(reference) -> None:  # type: ignore[no-untyped-def]
    path, latents, image = reference
    verdict = compare(latents, image.flip(0), path, dtype="bf16", exact_image=True)
    assert verdict["ok"] is False
    assert "the latents are right but the image is not" in verdict["reason"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the distance is no coarser than its numbers
def test_relative_l2_is_relative(dtype: torch.dtype) -> None:
    wanted = torch.tensor([3.0, 4.0], dtype=dtype)
    assert relative_l2(torch.tensor([3.0, 4.5], dtype=dtype), wanted) == pytest.approx(0.1, rel=1e-12)


def test_a_result_that_could_not_be_written_whole_leaves_the_last_one(
    reference, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    path, latents, image = reference

    def full_disk(tensors: object, filename: str, metadata: object) -> None:
        Path(filename).write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr("xdit_bench.measure.parity.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_result(path, latents + 1, image, "usp u2r1 eager")
    verdict = compare(latents, image, path, dtype="fp32", exact_image=True)
    assert (verdict["ok"], verdict["reference"]) == (True, "stock u1r1 eager")


@pytest.mark.parametrize(("off", "ok"), [(2, True), (3, False)])
def test_an_fp32_image_may_be_off_by_rounding_alone(tmp_path: Path, off: int, ok: bool) -> None:
    latents, image = torch.randn(1, 4, 64), torch.full((8, 8, 3), 100, dtype=torch.uint8)
    save_result(tmp_path / "r.safetensors", latents, image, "stock")
    image[0, 0, 0] += off
    assert compare(latents, image, tmp_path / "r.safetensors", dtype="fp32", exact_image=True)["ok"] is ok


def test_a_bf16_image_is_held_to_its_contrast_not_to_its_brightness(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    latents, image = torch.randn(1, 4, 64), torch.randint(180, 221, (32, 32, 3), generator=draw, dtype=torch.uint8)
    save_result(tmp_path / "r.safetensors", latents, image, "stock")
    noise = torch.randint(-2, 3, image.shape, generator=draw)  # an eighth of the contrast, then a quarter
    for scale, ok in ((1, True), (2, False)):
        near = (image.int() + scale * noise).clamp(0, 255).to(torch.uint8)
        verdict = compare(latents, near, tmp_path / "r.safetensors", dtype="bf16", exact_image=True)
        assert verdict["ok"] is ok, verdict


@pytest.mark.parametrize(("rows", "ok"), [(0, True), (1, False), (8, False)])
def test_a_bf16_image_that_is_wrong_in_a_few_rows_is_wrong(tmp_path: Path, rows: int, ok: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    latents, image = torch.randn(1, 4, 64), torch.randint(0, 256, (512, 32, 3), generator=draw, dtype=torch.uint8)
    save_result(tmp_path / "r.safetensors", latents, image, "stock")
    seam = image.clone()
    seam[255 : 255 + rows] = image[100 : 100 + rows]
    verdict = compare(latents, seam, tmp_path / "r.safetensors", dtype="bf16", exact_image=True)
    assert verdict["ok"] is ok
    assert (verdict["image_worst_row"] > ROW_BOUND) is not ok
    if rows:
        assert "of the worst row 1." in verdict["reason"]
    assert compare(latents, seam, tmp_path / "r.safetensors", dtype="bf16", exact_image=False)["ok"] is True


def test_an_image_that_comes_later_leaves_the_latents_and_their_maker(tmp_path: Path) -> None:
    path, draw = tmp_path / "r.safetensors", torch.Generator().manual_seed(0)
    latents, image = torch.randn(1, 4, 64), torch.randint(0, 256, (8, 8, 3), generator=draw, dtype=torch.uint8)
    save_result(path, latents, None, "stock u1r1 eager")
    add_image(path, image, "usp u1r2 eager")
    verdict = compare(latents, image.flip(0), path, dtype="fp32", exact_image=True)
    assert (verdict["latents_rel_l2"], verdict["reference"]) == (0.0, "stock u1r1 eager")
    assert verdict["image_reference"] == "usp u1r2 eager"
    assert "differ from usp u1r2 eager" in verdict["reason"]
