"""Static splits of text and image tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from xdit_bench.engine.shares import rope_angles, share_tokens
from xdit_bench.errors import Infeasible

SIZES = [(1024, 1024, 512), (720, 1280, 77), (112, 176, 33), (48, 80, 5), (16, 4096, 1), (2048, 16, 256)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize(("height", "width", "text"), SIZES)
def test_every_token_has_one_owner_and_ranks_differ_by_at_most_one(
    height: int, width: int, text: int, ranks: int
) -> None:
    shares = share_tokens(height, width, text, ranks)
    assert sum(shares.text) == text
    assert sum(shares.image) == height * width // 256
    loads = [shares.tokens(rank) for rank in range(ranks)]
    assert max(loads) - min(loads) <= 1
    assert min(shares.text + shares.image) >= 0


def test_image_shares_are_whole_rows_where_text_evens_them_out() -> None:
    shares = share_tokens(1024, 1024, 512, 3)
    assert shares.image == (22 * 64, 21 * 64, 21 * 64)
    assert shares.text == (128, 192, 192)


def test_ranges_follow_each_other() -> None:
    shares = share_tokens(112, 176, 33, 5)
    stops = [shares.image_range(rank) for rank in range(5)]
    assert stops[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(stops))


def test_rejects_a_side_that_is_no_multiple_of_16() -> None:
    with pytest.raises(Infeasible, match="height=1000"):
        share_tokens(1000, 1024, 77, 2)


def test_rejects_more_ranks_than_image_tokens() -> None:
    with pytest.raises(Infeasible, match="4 tokens"):
        share_tokens(32, 32, 77, 5)


def test_rope_angles_of_all_ranks_are_the_model_s_own_table() -> None:
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    embed = FluxPosEmbed(theta=10000, axes_dim=[4, 6, 6])
    shares = share_tokens(80, 112, 7, 3)
    image = torch.cartesian_prod(torch.zeros(1), torch.arange(5.0), torch.arange(7.0))
    whole = embed(torch.cat([torch.zeros(7, 3), image]))
    for table in (0, 1):
        parts = [rope_angles(embed, shares, rank, torch.device("cpu"), torch.float32)[table] for rank in range(3)]
        text = torch.cat([part[:t] for part, t in zip(parts, shares.text, strict=True)])
        pixels = torch.cat([part[t:] for part, t in zip(parts, shares.text, strict=True)])
        torch.testing.assert_close(torch.cat([text, pixels]), whole[table][:, ::2])


def test_positions_are_rounded_as_diffusers_pipeline_rounds_them() -> None:
    from diffusers import FluxPipeline
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    embed, cpu = FluxPosEmbed(theta=10000, axes_dim=[4, 6, 6]), torch.device("cpu")
    shares = share_tokens(16, 16 * 300, 1, 1)  # 257 is none of bf16's
    for dtype in (torch.bfloat16, torch.float32):
        ids = FluxPipeline._prepare_latent_image_ids(1, 1, 300, cpu, dtype)
        mine = rope_angles(embed, shares, 0, cpu, dtype)[0][1:]
        assert torch.equal(mine, embed(ids)[0][:, ::2])
    assert not torch.equal(mine, rope_angles(embed, shares, 0, cpu, torch.bfloat16)[0][1:])
