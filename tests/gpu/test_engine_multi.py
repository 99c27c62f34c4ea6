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
            options=Options(keys=keys, exchange=exchange),
        )  # fmt: skip
        for _ in range(2):  # a graph is captured, then replayed
            latents = flux.gather(flux.denoise(*inputs, cases.SIGMAS, None))
        if exchange == "symmetric":
            assert type(flux.carrier).__name__ == "SymmetricCarrier"
        results[ulysses, ring, keys, execution, exchange] = cases.relative(latents, reference)
        flux.close()
    if rank == 0:
        torch.save(results, f"{folder}/results")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


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


@pytest.mark.fourgpu
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("ulysses", "ring", "keys"), OF_FOUR)
def test_four_gpus_equal_one_also_after_a_mesh_of_two(
    ulysses: int, ring: int, keys: str, execution: str, exchange: str, results_of_four: Results
) -> None:
    assert results_of_four[ulysses, ring, keys, execution, exchange] <= 5e-2
