"""Attribution of made-up kernels, and of a real product on the CPU."""

from __future__ import annotations

import pytest
import torch

from xdit_bench.measure.profile import _named, attribute, classify, length, profile_step


@pytest.mark.parametrize(("name", "kind"), [
    ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "gemm"),
    ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "gemm"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
    ("void flash::flash_fwd_kernel<...cutlass::bfloat16_t...>", "attention"),
    ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "communication"),
    ("Memcpy PtoP (Device -> Device)", "communication"),
    ("Memcpy DtoD (Device -> Device)", "elementwise"),
    ("triton_poi_fused_add_mul_3", "elementwise"),
    ("triton_red_fused__scaled_dot_product_cudnn_attention_cat_mul_rsqrt_1", "elementwise"),
    ("triton_poi_fused_addmm_gelu_2", "elementwise"),
    ("triton_tem_fused_addmm_4", "gemm"),
])  # fmt: skip
def test_kernels_are_classed_by_name(name: str, kind: str) -> None:
    assert classify(name) == kind


def test_a_copy_between_devices_is_communication_where_engines_exchange_so() -> None:
    copy = "Memcpy DtoD (Device -> Device)"
    assert [classify(_named(copy, to_peers)) for to_peers in (False, True)] == ["elementwise", "communication"]


def test_communication_counts_where_nothing_hides_it_and_gaps_are_launch() -> None:
    spans = [("gemm", (0.0, 2.0)), ("nccl", (1.0, 4.0)), ("add", (3.0, 3.5)), ("flash", (5.0, 7.0))]
    found = attribute(spans)
    assert found == {"gemm": 2.0, "attention": 2.0, "elementwise": 0.5, "communication": 1.5, "launch": 1.0}
    assert sum(found.values()) == 7.0


def test_union_counts_overlaps_once() -> None:
    assert length([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4.0
    assert length([]) == 0.0


def test_real_product_is_seen_as_one() -> None:
    a, b = torch.randn(600, 700), torch.randn(700, 800)
    found = profile_step(lambda: [a @ b for _ in range(20)], torch.device("cpu"), steps=2)
    assert found["gemm_s"] > 10 * found["attention_s"]
    assert found["gemm_s"] > found["elementwise_s"]
