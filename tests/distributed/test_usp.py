"""The engine `usp` on real processes over gloo against diffusers' own forward and scheduler in one process.

All cases run in one set of four ranks (starting processes costs far more than the cases); tests read the results.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

RANKS = 4
STEPS = 2
PARITY = 1e-5
FAULT = 1e-2


@dataclass(frozen=True)
class Case:
    ulysses: int
    ring: int
    height: int
    width: int
    text: int
    guidance: float | None = None
    fault: str = ""
    gather_keys: bool = False
    mixed: bool = False  # keys gathered in single blocks alone
    batch: int = 1
    execution: str = "eager"
    bf16: bool = False

    @property
    def name(self) -> str:
        extras = [
            self.fault,
            "gathered" * self.gather_keys,
            "mixed" * self.mixed,
            "guided" * bool(self.guidance),
            "bf16" * self.bf16,
        ]
        extras += [f"batch{self.batch}" * (self.batch > 1), self.execution * (self.execution != "eager")]
        return "-".join(
            [f"u{self.ulysses}r{self.ring}", f"{self.height}x{self.width}", f"t{self.text}", *filter(None, extras)]
        )


EXACT = [
    Case(1, 1, 112, 80, 33),
    Case(2, 1, 128, 96, 77),
    Case(1, 2, 112, 176, 33),
    Case(2, 2, 144, 80, 77),
    Case(2, 2, 80, 112, 33),
    Case(1, 3, 80, 208, 33),
    Case(1, 3, 112, 96, 77, gather_keys=True),
    Case(1, 3, 48, 112, 33, gather_keys=True, mixed=True),
    Case(1, 2, 48, 112, 33, gather_keys=True),
    Case(2, 2, 112, 80, 17, gather_keys=True),
    Case(4, 1, 128, 80, 77),
    Case(1, 4, 48, 80, 5),
    Case(1, 4, 80, 48, 2),  # some ranks have no text
    Case(2, 1, 96, 112, 33, guidance=3.5),
    Case(1, 2, 80, 96, 77, guidance=3.5),
    Case(2, 2, 96, 112, 9, batch=2),
]
COARSE = [
    Case(1, 1, 112, 80, 33, bf16=True),
    Case(4, 1, 128, 80, 77, bf16=True),
    Case(1, 4, 112, 176, 33, bf16=True),
    Case(1, 3, 112, 96, 77, bf16=True, gather_keys=True),
    Case(2, 2, 96, 112, 9, bf16=True, guidance=4.0),  # 4000 is the same number in bf16
]
FAULTY = [
    Case(2, 1, 128, 96, 77, fault="rope_offset"),
    Case(1, 2, 112, 176, 33, fault="rope_offset"),
    Case(2, 1, 128, 96, 77, fault="dropped_text"),
    Case(1, 3, 80, 208, 33, fault="dropped_text"),
    Case(1, 2, 112, 176, 33, fault="no_merge"),
    Case(2, 2, 144, 80, 77, fault="no_merge"),
]
TEXT = [(1, 1), (2, 1), (1, 3), (2, 2)]  # of three layers: whole, 2 + 1, one each, and a rank without any; by width of
# four heads and 48 columns: whole, halves, 2 + 1 + 1 and 16 each, a head each


def worker(rank: int, folder: str) -> None:
    from omegaconf import OmegaConf

    from xdit_bench.engine.mesh import build_mesh, connect

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    connect(rank, RANKS, f"{folder}/store", cpu)
    spec: Any = OmegaConf.to_container(OmegaConf.load(Path("conf/model/flux_tiny.yaml")))["transformer"]  # type: ignore[index,call-overload]
    results = {}
    for case in EXACT + COARSE + FAULTY:
        mesh = build_mesh(case.ulysses, case.ring, cpu)
        if mesh is not None:
            distance = run_case(case, mesh, spec)
            results[case.name] = distance
    for ulysses, ring in TEXT:
        mesh = build_mesh(ulysses, ring, cpu)
        if mesh is not None:
            for by_width in (False, True):
                results[f"text-u{ulysses}r{ring}-{by_width}"] = run_text(mesh, by_width)
    if rank == 0:
        torch.save(results, f"{folder}/results")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run_case(case: Case, mesh: Any, spec: dict[str, Any]) -> dict[str, float]:
    from diffusers import FluxTransformer2DModel

    from xdit_bench.backends.modules import fill_random
    from xdit_bench.engine.flux import UspFlux
    from xdit_bench.engine.usp import Gathered

    transformer = FluxTransformer2DModel(**{**spec, "guidance_embeds": case.guidance is not None})
    fill_random(transformer, torch.Generator().manual_seed(1))
    transformer.eval().requires_grad_(False)
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    if case.bf16:
        transformer.to(dtype)
    draw = torch.Generator().manual_seed(2)
    image = (case.height // 16) * (case.width // 16)
    noise = torch.randn(case.batch, image, 64, generator=draw).to(dtype)
    prompt = torch.randn(case.batch, case.text, spec["joint_attention_dim"], generator=draw).to(dtype)
    pooled = torch.randn(case.batch, spec["pooled_projection_dim"], generator=draw).to(dtype)
    flux = UspFlux(
        transformer, mesh, height=case.height, width=case.width, text_tokens=case.text, execution=case.execution
    )
    if case.ring > 1:  # both ways are timed together on every rank; they must agree whatever the clock says
        heads = transformer.config.num_attention_heads // case.ulysses
        shapes = [(case.ulysses, flux.shares.tokens(mesh.rank), 1, n, heads, 16) for n in (2, 1)]
        slabs = tuple(torch.randn(shape, dtype=dtype) for shape in shapes)
        faster = flux.attention.gathering_is_faster
        agreed = torch.tensor([float(faster(slabs, lambda: None, beside=beside)) for beside in (True, False)])
        torch.distributed.broadcast(other := agreed.clone(), 0, group=mesh.group)
        assert torch.equal(agreed, other)
    flux.attention.gathered = Gathered(beside=case.gather_keys, alone=case.gather_keys and not case.mixed)
    if case.fault == "rope_offset" and mesh.rank == mesh.size - 1:
        flux.rope = flux.rope._replace(cos=flux.rope.cos.roll(3, 0), sin=flux.rope.sin.roll(3, 0))
    if case.fault == "no_merge":
        flux.attention.merge = lambda out, lse, more, more_lse, dtype: (out + more, lse)
    if case.fault == "dropped_text":
        kernel = flux.attention.kernel
        drop = 7 if mesh.rank == 0 else 0
        flux.attention.kernel = lambda q, k, v: kernel(q, k[:, drop:], v[:, drop:])
    sigmas = torch.tensor([1.0, 0.6, 0.0])
    own = flux.denoise(noise, prompt, pooled, sigmas, case.guidance)
    assert own.shape[1] == flux.image_range[1] - flux.image_range[0]
    assert flux.sent_bytes == bytes_a_step(case, mesh, flux, transformer.config)
    latents = flux.gather(own)
    again = flux.gather(flux.denoise(noise.flip(1), prompt, pooled, torch.tensor([1.0, 0.9, 0.5, 0.0]), case.guidance))
    flux.close()
    reference = stock(transformer, noise, prompt, pooled, sigmas, case)
    if case.bf16:  # how far this and diffusers' own roundings are from no rounding at all
        exact = stock(transformer.float(), noise.float(), prompt.float(), pooled.float(), sigmas, case)
        return {"first": relative(latents.float(), exact), "stock": relative(reference.float(), exact)}
    other = stock(transformer, noise.flip(1), prompt, pooled, torch.tensor([1.0, 0.9, 0.5, 0.0]), case)
    assert (latents[:, slice(*flux.image_range)] == own).all()
    return {"first": relative(latents, reference), "second": relative(again, other), "spread": reference.std().item()}


def run_text(mesh: Any, by_width: bool) -> dict[str, float]:
    """How far any rank's embeddings are from the whole encoder's, and how far another position bias moves these."""
    from transformers import T5Config, T5EncoderModel

    from xdit_bench.backends.modules import fill_random
    from xdit_bench.engine.collectives import DistributedCarrier
    from xdit_bench.engine.text import ShardedT5

    config = T5Config(
        vocab_size=99, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=3, feed_forward_proj="gated-gelu"
    )
    encoder = T5EncoderModel(config)
    fill_random(encoder, torch.Generator().manual_seed(3))
    encoder.eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(4)
    sharded, found = ShardedT5(encoder, mesh, DistributedCarrier(mesh), by_width=by_width), {}
    for name, tokens in (("first", 20), ("second", 7)):
        ids = torch.randint(0, 99, (2, tokens), generator=draw)
        distance = torch.tensor(relative(sharded(ids), encoder(ids)[0]))
        if mesh.group is not None:
            torch.distributed.all_reduce(distance, torch.distributed.ReduceOp.MAX, group=mesh.group)
        found[name] = distance.item()
    before = encoder(ids)[0]
    encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.neg_()  # as other weights would be
    found["other_bias"] = relative(sharded(ids), encoder(ids)[0])
    found["moved"] = relative(encoder(ids)[0], before)
    if by_width or sharded.counts[mesh.rank]:
        bias = sharded.stage.encoder.block[0].layer[0].SelfAttention.compute_bias(5, 5)
        found["stride"] = bias.stride(-1)
    return found


def bytes_a_step(case: Case, mesh: Any, flux: Any, config: Any) -> int:
    """What a rank sends to others, counted by hand: other ranks' heads of its q, k and v, other ranks' tokens of its
    heads, and keys with values of its heads around the ring."""
    tokens = [flux.shares.tokens(rank) for rank in range(mesh.size)]
    head = config.attention_head_dim * (2 if case.bf16 else 4) * case.batch
    mine = config.num_attention_heads // case.ulysses * head  # of a token, this rank's heads
    across = [[mesh.rank_at(u, r) for u in range(case.ulysses)] for r in range(case.ring)]
    rows = [sum(tokens[rank] for rank in ranks) for ranks in across]  # of a ring position's keys
    position = next(r for r in range(case.ring) if mesh.rank in across[r])
    own, others = tokens[mesh.rank], rows[position] - tokens[mesh.rank]
    heads = (3 * own * (case.ulysses - 1) + others) * mine
    gathered = 2 * mine * rows[position] * (case.ring - 1)
    hops = 2 * mine * (sum(rows) - rows[(position + 1) % case.ring])  # all blocks but the one that would come last
    alone = gathered if case.gather_keys and not case.mixed else hops
    keys = len(flux.single) * (gathered if case.gather_keys else hops) + len(flux.double) * alone
    return heads * (len(flux.single) + len(flux.double)) + keys


@torch.no_grad()
def stock(transformer: Any, noise: Tensor, prompt: Tensor, pooled: Tensor, sigmas: Tensor, case: Case) -> Tensor:
    """diffusers' forward and scheduler, on the very modules the engine has fused."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    image_ids = FluxPipeline._prepare_latent_image_ids(
        1, case.height // 16, case.width // 16, noise.device, noise.dtype
    )
    guidance = None if case.guidance is None else torch.full((case.batch,), case.guidance)
    latents = noise
    for t in scheduler.timesteps:
        velocity = transformer(
            hidden_states=latents, encoder_hidden_states=prompt, pooled_projections=pooled,
            timestep=(t / 1000).expand(case.batch), guidance=guidance, img_ids=image_ids,
            txt_ids=torch.zeros(case.text, 3), return_dict=False,
        )[0]  # fmt: skip
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


def relative(result: torch.Tensor, reference: torch.Tensor) -> float:
    return ((result - reference).norm() / reference.norm()).item()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = str(tmp_path_factory.mktemp("ranks"))
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the ranks
    try:
        torch.multiprocessing.start_processes(worker, (folder,), nprocs=RANKS, start_method="spawn")
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return torch.load(f"{folder}/results")


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_sharded_denoising_equals_one_process(case: Case, results: dict[str, dict[str, float]]) -> None:
    result = results[case.name]
    assert result["spread"] > 0.1  # the reference is alive
    assert result["first"] <= PARITY


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_another_image_with_more_steps_needs_no_new_engine(case: Case, results: dict[str, dict[str, float]]) -> None:
    assert results[case.name]["second"] <= PARITY


@pytest.mark.parametrize("case", COARSE, ids=lambda case: case.name)
def test_in_bf16_ranks_round_no_more_than_one_process_of_diffusers(
    case: Case, results: dict[str, dict[str, float]]
) -> None:
    result = results[case.name]
    assert 1e-4 < result["first"] < 1.25 * result["stock"] < 0.02  # its attention on CPUs rounds a little more


@pytest.mark.parametrize("case", FAULTY, ids=lambda case: case.name)
def test_planted_fault_moves_the_result(case: Case, results: dict[str, dict[str, float]]) -> None:
    assert results[case.name]["first"] >= FAULT


@pytest.mark.parametrize("by_width", [False, True])
@pytest.mark.parametrize("split", TEXT, ids=lambda split: "u{}r{}".format(*split))
def test_shared_out_t5_yields_what_the_whole_encoder_yields_whatever_its_position_bias(
    split: tuple[int, int], by_width: bool, results: dict[str, dict[str, float]]
) -> None:
    result = results["text-u{}r{}-{}".format(*split, by_width)]
    bound = PARITY if by_width and split != (1, 1) else 0.0  # sums over ranks round in another order
    assert max(result["first"], result["second"], result["other_bias"]) <= bound
    assert result["moved"] > FAULT  # every layer's bias counts
    assert result["stride"] == 1  # else GPUs have no fused attention for it
