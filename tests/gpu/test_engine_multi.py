"""The engine `usp` on two and four GPUs against diffusers on one: every way heads and keys may travel."""

from __future__ import annotations

from itertools import product
from typing import Any

import engine_cases as cases
import pytest
import torch

pytestmark = pytest.mark.multigpu

Results = dict[tuple[int, int, str, str, str], float]
MESHES = [(2, 1, "ring"), (1, 2, "ring"), (1, 2, "gathered"), (1, 2, "auto")]
OF_FOUR = [(2, 1, "ring"), (1, 4, "ring"), (2, 2, "gathered"), (1, 2, "auto"), (2, 2, "auto"), (4, 1, "ring")]
EXECUTIONS = ["eager", "graph"]
EXCHANGES = ["distributed", "symmetric"]
HOPS = 16


def worker(rank: int, folder: str, ranks: int, meshes: list[tuple[int, int, str]]) -> None:
    from xdit_bench.engine.flux import Options, UspFlux
    from xdit_bench.engine.mesh import build_mesh, connect

    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    connect(rank, ranks, f"{folder}/store", device)
    model: Any = cases.build(device, torch.bfloat16)
    inputs = cases.inputs(device, torch.bfloat16)
    reference = cases.stock(model, *inputs)
    results = {}
    for (ulysses, ring, keys), execution, exchange in product(meshes, EXECUTIONS, EXCHANGES):
        mesh = build_mesh(ulysses, ring, device)
        if mesh is None:
            continue
        flux = UspFlux(
            model, mesh, height=cases.HEIGHT, width=cases.WIDTH, text_tokens=cases.TEXT, execution=execution,
            options=Options(keys=keys, symmetric=exchange == "symmetric"),
        )  # fmt: skip
        for _ in range(2):  # a graph is captured, then replayed
            latents = flux.gather(flux.denoise(*inputs, cases.SIGMAS, None))
        if exchange == "symmetric":
            assert type(flux.carrier).__name__ == "SymmetricCarrier"
        results[ulysses, ring, keys, execution, exchange] = cases.relative(latents, reference)
        flux.close()
    results |= run_texts(device, meshes)
    results |= run_hops(device, meshes)
    if rank == 0:
        torch.save(results, f"{folder}/results")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@torch.no_grad()
def run_texts(device: torch.device, meshes: list[tuple[int, int, str]]) -> Results:
    """T5 shared out by depth and by width, op by op and captured, a prompt after another; layers come back between."""
    from transformers import T5Config, T5EncoderModel

    from xdit_bench.backends.modules import fill_random
    from xdit_bench.engine.collectives import DistributedCarrier
    from xdit_bench.engine.graphs import LoopGraphs
    from xdit_bench.engine.mesh import build_mesh
    from xdit_bench.engine.text import ShardedT5

    encoder = T5EncoderModel(
        T5Config(vocab_size=99, d_model=256, d_kv=64, num_heads=6, d_ff=500, num_layers=3,
                 feed_forward_proj="gated-gelu")
    )  # fmt: skip
    fill_random(encoder, torch.Generator().manual_seed(3))
    encoder = encoder.to(device, torch.bfloat16).eval().requires_grad_(False)
    prompts = [torch.arange(first, first + 64, device=device)[None] for first in (0, 30)]
    whole = [encoder(ids)[0] for ids in prompts]
    results = {}
    for ulysses, ring in dict.fromkeys((u, r) for u, r, _ in meshes):
        mesh = build_mesh(ulysses, ring, device)
        if mesh is None:
            continue
        for by_width, execution in product((False, True), EXECUTIONS):
            sharded = ShardedT5(encoder, mesh, DistributedCarrier(mesh), by_width=by_width)
            assert sharded.by_width is by_width
            call = LoopGraphs(sharded) if execution == "graph" else sharded
            errors = [cases.relative(call(ids), said) for ids, said in zip(prompts, whole, strict=True)]
            results[ulysses, ring, f"t5 by {'width' if by_width else 'depth'}", execution, ""] = max(errors)
            if isinstance(call, LoopGraphs):
                call.clear()
            sharded.close()
        torch.testing.assert_close(encoder(prompts[0])[0], whole[0], rtol=0.0, atol=0.0)
    return results


def run_hops(device: torch.device, meshes: list[tuple[int, int, str]]) -> Results:
    """Memory that a captured row of exchanges by NCCL takes, in blocks sent."""
    from xdit_bench.engine.collectives import DistributedCarrier
    from xdit_bench.engine.mesh import build_mesh

    kept = {}
    block = torch.ones(2**25, 1, device=device, dtype=torch.uint8)
    for ulysses, ring in dict.fromkeys((u, r) for u, r, _ in meshes if r > 1):
        mesh = build_mesh(ulysses, ring, device)
        if mesh is None:
            continue
        carrier, rows = DistributedCarrier(mesh), [block.shape[0]] * ring
        moves: dict[str, Any] = {"shift": lambda c=carrier, r=rows: c.shift(block, r, 0),
                                 "collect": lambda c=carrier, r=rows: c.collect(block, r)}  # fmt: skip
        for way, move in moves.items():
            move().wait()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for _ in range(HOPS):
                    move().wait()
            kept[ulysses, ring, way, "graph", "distributed"] = (torch.cuda.memory_reserved() - before) / block.nbytes
            del graph
    return kept


def run(folder: str, ranks: int, meshes: list[tuple[int, int, str]]) -> Results:
    torch.multiprocessing.start_processes(worker, (folder, ranks, meshes), nprocs=ranks, start_method="spawn")
    loaded: Results = torch.load(f"{folder}/results")
    return loaded


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(str(tmp_path_factory.mktemp("two")), 2, MESHES)


@pytest.fixture(scope="module")
def results_of_four(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(str(tmp_path_factory.mktemp("four")), 4, OF_FOUR)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("ulysses", "ring", "keys"), MESHES)
def test_two_gpus_equal_one(
    ulysses: int, ring: int, keys: str, execution: str, exchange: str, results: Results
) -> None:
    assert results[ulysses, ring, keys, execution, exchange] <= 5e-2


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("share", ["t5 by depth", "t5 by width"])
@pytest.mark.parametrize(("ulysses", "ring"), [(2, 1), (1, 2)])
def test_t5_shared_out_over_two_gpus_equals_the_whole(
    ulysses: int, ring: int, share: str, execution: str, results: Results
) -> None:
    assert results[ulysses, ring, share, execution, ""] <= 5e-2


@pytest.mark.parametrize("way", ["shift", "collect"])
def test_a_graph_keeps_no_block_that_has_arrived(way: str, results: Results) -> None:
    assert results[1, 2, way, "graph", "distributed"] < HOPS / 2


@pytest.mark.fourgpu
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("ulysses", "ring", "keys"), OF_FOUR)
def test_four_gpus_equal_one_also_after_a_mesh_of_two(
    ulysses: int, ring: int, keys: str, execution: str, exchange: str, results_of_four: Results
) -> None:
    assert results_of_four[ulysses, ring, keys, execution, exchange] <= 5e-2
