"""What xfuser keeps in its modules (groups, runtime state, kernels found at import), set for one point and put back.

xfuser's own set-up makes new process groups and needs every rank of the world; a point has the first ranks alone, so
its coordinators are built on the groups of our mesh.

    with join(mesh, pipe, point, "CUDNN") as kernel: ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from xdit_bench.config import Point
from xdit_bench.engine.mesh import Mesh
from xdit_bench.errors import Infeasible, MissingExtraError

ALONE = ("_TP", "_CFG", "_DP", "_FS")  # groups of one rank: xfuser's other ways to split
WHOLE = ("_WORLD", "_MODEL_REPLICA")  # groups of all ranks of the point
MISSING = object()


def import_xfuser(device: torch.device) -> None:
    """Raises MissingExtraError where xfuser can not be imported, Infeasible where there is no GPU for it."""
    if device.type != "cuda":
        raise Infeasible("xfuser runs on GPUs alone: it does not import without one; use engine=usp or diffusers")
    try:
        import xfuser.model_executor.models.transformers.transformer_flux  # noqa: F401
        import yunchang  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"engine=xfuser needs the packages xfuser and yunchang with what they import ({error}); "
            "pip install 'xdit_bench[peers]'"
        ) from error


@contextmanager
def setting(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value for a while; one that was not there is taken away again."""
    before = getattr(owner, name, MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def join(mesh: Mesh, pipe: Any, point: Point, attention: str | None) -> Iterator[str]:
    """xfuser's groups and runtime state for the point's ranks. Yields the attention that xfuser took.

    Raises Infeasible with xfuser's own words for what its runtime state refuses.
    """
    from xfuser.core.distributed import parallel_state, runtime_state
    from xfuser.core.distributed.attention_backend import AttentionBackendType
    from yunchang.globals import PROCESS_GROUP

    with ExitStack() as undo:
        for name, coordinator in coordinators(mesh).items():
            undo.enter_context(setting(parallel_state, name, coordinator))
        undo.enter_context(setting(PROCESS_GROUP, "ULYSSES_PG", mesh.ulysses_group))
        undo.enter_context(setting(PROCESS_GROUP, "RING_PG", mesh.ring_group))
        try:
            state = runtime_state.DiTRuntimeState(pipe, engine_config(mesh, attention))
            if state.attention_backend is AttentionBackendType.FLASH and not runtime_state.env_info["has_flash_attn"]:
                raise RuntimeError("its check of the package flash_attn failed")
            state.set_input_parameters(
                batch_size=1,
                num_inference_steps=point.steps,
                max_condition_sequence_length=point.text_tokens,
                split_text_embed_in_sp=True,
            )
        except (RuntimeError, ValueError) as error:
            raise Infeasible(f"xfuser refuses the point ({error}); use another attention, split or engine") from error
        undo.enter_context(setting(runtime_state, "_RUNTIME", state))
        yield state.attention_backend.name


def coordinators(mesh: Mesh) -> dict[str, Any]:
    """xfuser's group coordinators by the name of their global, on the mesh's process groups."""
    from xfuser.core.distributed import group_coordinator as theirs

    ranks = list(range(mesh.size))
    made = {name: _coordinator(theirs.GroupCoordinator, mesh, [mesh.rank]) for name in ALONE}
    made |= {name: _coordinator(theirs.GroupCoordinator, mesh, ranks) for name in WHOLE}
    made["_PP"] = _coordinator(theirs.PipelineGroupCoordinator, mesh, [mesh.rank])
    sequence = _coordinator(theirs.SequenceParallelGroupCoordinator, mesh, ranks)
    sequence.ulysses_group, sequence.ring_group = mesh.ulysses_group, mesh.ring_group
    sequence.ulysses_world_size, sequence.ulysses_rank = mesh.ulysses, mesh.ulysses_rank
    sequence.ring_world_size, sequence.ring_rank = mesh.ring, mesh.ring_rank
    return {**made, "_SP": sequence}


def _coordinator(kind: type, mesh: Mesh, ranks: list[int]) -> Any:
    """What `kind.__init__` sets, without the groups it makes: collectives on this rank alone are skipped anyway."""
    made = kind.__new__(kind)
    made.rank = made.local_rank = mesh.rank
    made.ranks, made.world_size, made.rank_in_group = ranks, len(ranks), ranks.index(mesh.rank)
    made.device_group = made.cpu_group = mesh.group if len(ranks) > 1 else None
    made.device = mesh.device
    return made


def engine_config(mesh: Mesh, attention: str | None) -> Any:
    """xfuser's configuration of Ulysses x ring and nothing else; the rest is its defaults."""
    from xfuser.config import config as theirs

    size = mesh.size
    parallel = theirs.ParallelConfig(
        dp_config=theirs.DataParallelConfig(dit_parallel_size=size),
        sp_config=theirs.SequenceParallelConfig(mesh.ulysses, mesh.ring, dit_parallel_size=size),
        pp_config=theirs.PipeFusionParallelConfig(dit_parallel_size=size),
        tp_config=theirs.TensorParallelConfig(dit_parallel_size=size),
        fs_config=theirs.FullyShardConfig(dit_parallel_size=size),
        vae_config=theirs.VaeParallelConfig(),
        world_size=size,
        dit_parallel_size=size,
        vae_parallel_size=0,
    )
    return theirs.EngineConfig(
        model_config=theirs.ModelConfig(model="FLUX.1"),
        runtime_config=theirs.RuntimeConfig(attention_backend=attention),
        parallel_config=parallel,
        fast_attn_config=theirs.FastAttnConfig(),
    )


@contextmanager
def with_fa3() -> Iterator[None]:
    """xfuser as it is where a module `flash_attn_interface` imports, with the kernels of the package fa3-fwd.

    xfuser looks once, when it is imported. Its two uses of what it found are set for the point alone, so that points
    with and without FlashAttention-3 run in one process.
    """
    from fa3_fwd_interface import flash_attn_func, flash_attn_varlen_func
    from xfuser.core.distributed import attention_backend

    with ExitStack() as undo:
        undo.enter_context(setting(attention_backend, "flash_attn_func_3", flash_attn_func))
        undo.enter_context(setting(attention_backend, "flash_attn_varlen_func_3", flash_attn_varlen_func))
        found = attention_backend.env_info
        before = found["has_flash_attn_3"]
        undo.callback(found.__setitem__, "has_flash_attn_3", before)
        found["has_flash_attn_3"] = True
        yield
