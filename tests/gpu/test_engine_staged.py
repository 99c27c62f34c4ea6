"""The engine `usp` as two ranks on one GPU, exchanging through host memory over gloo.

NCCL wants a GPU a rank; this holds everything else of a run on several GPUs to diffusers' result: the fused kernels'
layouts for sending, partial attention and its merging, keys that travel or gather, the shared-out modulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import engine_cases as cases
import pytest
import torch
from torch import Tensor

from xdit_bench.engine.collectives import DistributedCarrier, Pending

pytestmark = pytest.mark.gpu

MESHES = [(2, 1, "ring"), (1, 2, "ring"), (1, 2, "gathered")]
FORMATS = [(torch.float32, "sdpa"), (torch.bfloat16, "cudnn"), (torch.bfloat16, "fa3")]
BOUND = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
Results = dict[tuple[int, int, str, torch.dtype, str], float]


class StagedCarrier(DistributedCarrier):
    """Copies to host memory, exchanges there, copies back."""

    def scatter(self, slabs: Tensor, rows: Sequence[int]) -> Pending:
        return self._back(super().scatter(slabs.cpu(), rows))

    def gather(self, whole: Tensor, rows: Sequence[int]) -> Pending:
        return self._back(super().gather(whole.cpu(), rows))

    def shift(self, block: Tensor, rows: Sequence[int], hop: int) -> Pending:
        return self._back(super().shift(block.cpu(), rows, hop))

    def collect(self, own: Tensor, rows: Sequence[int]) -> Pending:
        return self._back(super().collect(own.cpu(), rows))

    def join(self, own: Tensor, rows: Sequence[int]) -> Tensor:
        return super().join(own.cpu(), rows).to(self.mesh.device)

    def _back(self, pending: Pending) -> Pending:
        return Pending(pending.wait().to(self.mesh.device))


def worker(rank: int, folder: str) -> None:
    from xdit_bench.engine.attention import available
    from xdit_bench.engine.flux import Options, UspFlux
    from xdit_bench.engine.mesh import build_mesh, connect

    host, device = torch.device("cpu"), torch.device("cuda", 0)
    connect(rank, 2, f"{folder}/store", host)
    results: Results = {}
    for dtype, attention in FORMATS:
        if attention not in available(device, dtype):
            continue
        model: Any = cases.build(device, dtype)
        inputs = cases.inputs(device, dtype)
        reference = cases.stock(model, *inputs)
        for ulysses, ring, keys in MESHES:
            mesh = build_mesh(ulysses, ring, host)
            assert mesh is not None
            mesh = replace(mesh, device=device)
            flux = UspFlux(
                model, mesh, height=cases.HEIGHT, width=cases.WIDTH, text_tokens=cases.TEXT, attention=attention,
                options=Options(keys=keys), carrier=StagedCarrier(mesh),
            )  # fmt: skip
            latents = flux.gather(flux.denoise(*inputs, cases.SIGMAS, None))
            results[ulysses, ring, keys, dtype, attention] = cases.relative(latents, reference)
            flux.close()
    if rank == 0:
        torch.save(results, f"{folder}/results")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = str(tmp_path_factory.mktemp("ranks"))
    torch.multiprocessing.start_processes(worker, (folder,), nprocs=2, start_method="spawn")
    loaded: Results = torch.load(f"{folder}/results")
    return loaded


@pytest.mark.parametrize(("mesh", "number_format"), product(MESHES, FORMATS), ids=str)
def test_two_ranks_equal_diffusers(
    mesh: tuple[int, int, str], number_format: tuple[torch.dtype, str], results: Results
) -> None:
    if (*mesh, *number_format) not in results:
        pytest.skip(f"attention={number_format[1]} is not available here")
    assert results[(*mesh, *number_format)] <= BOUND[number_format[0]]
