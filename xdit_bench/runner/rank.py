"""One rank's part of one point: load, prepare, time, compare, clean up. Runs inside a worker.

Owns what lives on the rank between points: modules and meshes. Leaves timing, memory and parity to `measure`, a
failure's words to `failure`, and what it means for the point to `outcome`.

    rank = Rank(number=0, device=device, note=board_note)
    report = rank.run(command)  # {"event": "result", ...} or {"event": "error", ...}; never raises
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from xdit_bench.backends import make_backend
from xdit_bench.backends.base import Backend
from xdit_bench.config import SHARED_VAES, MeasureConfig, ModelSpec, Point
from xdit_bench.engine.mesh import Mesh, build_mesh
from xdit_bench.measure.collectives import probe_collectives, probe_link
from xdit_bench.measure.launch import BlockLaunch
from xdit_bench.measure.memory import MemoryWatch
from xdit_bench.measure.parity import add_image, compare, finite, from_truth, save_result
from xdit_bench.measure.profile import profile_step
from xdit_bench.measure.timers import ImageTimer, Timing, synchronize
from xdit_bench.runner.failure import brief, describe, drop_locals, forget_frames

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Message = dict[str, Any]
Link = dict[str, dict[str, float]]  # bytes and seconds of an exchange by kind


class Rank:
    """What a rank keeps for the whole plan."""

    def __init__(self, number: int, device: torch.device, note: Callable[[str, int], None]) -> None:
        self.number = number
        self.device = device
        self._note = note
        self._stage = "start"
        self._iteration = -1
        self._meshes: dict[tuple[int, int], Mesh | None] = {}
        self._modules: tuple[tuple[str, ...], Any] | None = None
        self._launch: BlockLaunch | None = None

    def note(self, stage: str, iteration: int = -1) -> None:
        """Says where this rank is, for itself and for whoever looks at the board."""
        self._stage, self._iteration = stage, iteration
        self._note(stage, iteration)

    def run(self, command: Message) -> Message:
        """A point, or only its reference (`measure` null). Collective over the pool. Never raises."""
        point = Point.from_dict(command["point"])
        model = ModelSpec.from_dict(command["model"])
        watch = None
        try:
            self.note("mesh")
            self._free()  # so that the point's peak is its own
            if point.execution == "compile":
                torch.compiler.reset()  # shapes of other points would make this one's dynamic, or not compiled at all
            mesh = self._mesh(point)
            if mesh is None:
                return {"event": "result", "member": False}
            cap = int(point.memory_cap_gb * 1e9) if point.memory_cap_gb else None
            watch = MemoryWatch(self.device, cap)
            return self._run_member(command, point, model, mesh, watch)
        except Exception as error:
            report = self._error(error, watch)
            forget_frames(error)
            report["clean"] = self._recover(report)
            return report
        finally:
            if watch is not None:
                watch.close()
            self.note("idle")

    def load(self, command: Message) -> Message:
        """Weights for the points to come, on every rank at once and outside any point's time. Never raises."""
        point, model = Point.from_dict(command["point"]), ModelSpec.from_dict(command["model"])
        try:
            if not getattr(make_backend(point.engine), "weightless", False):
                self._load(point, model)
            return {"event": "result"}
        except Exception as error:
            report = self._error(error, None)
            forget_frames(error)
            report["clean"] = self._recover(report)
            return report
        finally:
            self.note("idle")

    def exchanges(self, command: Message) -> Message:
        """How fast all ranks exchange tensors. Collective over the pool. Never raises."""
        del command
        try:
            self.note("exchange")
            return {"event": "result", "rows": probe_collectives(None, self.device)}
        except Exception as error:
            return self._error(error, None) | {"clean": False}

    def _run_member(self, command: Message, point: Point, model: ModelSpec, mesh: Mesh, watch: MemoryWatch) -> Message:
        backend = make_backend(point.engine)
        try:
            with torch.no_grad():
                parameters = self._prepare(backend, mesh, point, model)
                timed = command["measure"] and parameters  # the fake engine computes nothing
                host = [self._host_now(mesh, point)] if timed else []
                watch.restart()
                # what a graph or compiled blocks hide from the host is not to be slowed by it
                brief = self._launch.brief if timed and self._launch and point.execution == "eager" else None
                timer = ImageTimer(
                    backend, mesh.group, self.device, point.vae != "none", self.note,
                    denoises=point.steps > 0, together=point.vae in SHARED_VAES, issue=brief,
                )  # fmt: skip
                timing = Timing()
                if command["measure"] is None:
                    timer.image(timing, 0.0)
                else:
                    timing = timer.measure(MeasureConfig(**command["measure"]))
                memory = _with_symmetric(watch.report(), backend) | {"parameters_bytes": parameters}
                if timed:
                    host.append(self._host_now(mesh, point))
                self.note("parity")
                choices = getattr(backend, "choices", {})
                parity = self._judge(command, backend, mesh, point, timing)
                attribution = self._profile(command, backend, mesh, point)
        except BaseException as error:
            watch.hold_free()
            drop_locals(error)  # closing brings weights back to the device, which these may have filled
            with contextlib.suppress(Exception):  # half prepared, it may not close; the first error is the cause
                self._close(backend, watch)
            raise
        self._close(backend, watch)
        issued, link = _over_time(host)
        issued[1:1] = timing.issued
        report: Message = {
            "event": "result",
            "member": True,
            "memory": memory,
            "own_total": timing.own_total,
            "block_launches_s": issued,
            "parity": parity,
        }
        if mesh.rank == 0:
            report |= {"samples": timing.samples, "warmup": timing.warmup, "spans": timing.spans}
            report["attribution"] = attribution
            report["comm_bytes_per_step"] = getattr(backend, "comm_bytes_per_step", None)
            report["choices"] = choices
            report["link"] = link
        return report

    def _close(self, backend: Backend, watch: MemoryWatch) -> None:
        """Closes the engine, whose weights that come back may not have been held below the cap; left as it changed them
        they are no use to the next point."""
        watch.close()
        try:
            backend.close()
        except Exception:
            self._modules = None
            raise

    def _prepare(self, backend: Backend, mesh: Mesh, point: Point, model: ModelSpec) -> int:
        """Bytes of parameters on this rank."""
        self.note("prepare")
        if getattr(backend, "weightless", False):  # the fake engine computes nothing
            backend.prepare(mesh, None, point, model, None)  # type: ignore[arg-type]
            return 0
        from xdit_bench.backends.modules import make_inputs, parameter_bytes

        modules = self._load(point, model)
        self.note("prepare")
        backend.prepare(mesh, modules, point, model, make_inputs(point, model, self.device, DTYPES[point.dtype]))
        return parameter_bytes(modules) + getattr(backend, "copied_bytes", 0)

    def _host_now(self, mesh: Mesh, point: Point) -> tuple[float | None, Link]:
        """How fast this rank's host issues work, and the links that lead through it carry bytes."""
        return self._issue(mesh.group), self._time_link(mesh, point)

    def _issue(self, group: dist.ProcessGroup | None) -> float | None:
        """Seconds this rank's host takes to issue a block now, all ranks at it; a CPU computes what it issues."""
        if self.device.type != "cuda":
            return None
        self._launch = self._launch or BlockLaunch(self.device, torch.bfloat16)
        if group is not None:
            dist.barrier(group)
        return self._launch()

    def _time_link(self, mesh: Mesh, point: Point) -> Link:
        """How fast the mesh's links are now, where they lead through the host: as fast as its cores are free."""
        if point.transport == "p2p":
            return {}
        return probe_link({"all_to_all": mesh.ulysses_group, "ring": mesh.ring_group}, self.device)

    def _load(self, point: Point, model: ModelSpec) -> Any:
        """The modules at hand when they will do, else new ones."""
        from xdit_bench.backends.modules import load_modules

        key = (point.model, point.weights, point.dtype, str(point.seed))
        if self._modules is None or self._modules[0] != key:
            self.note("load")
            self._modules = None  # before the next are built: a card may not hold two sets
            self._free()
            self._modules = (key, load_modules(point, model, self.device, DTYPES[point.dtype]))
        return self._modules[1]

    def _judge(self, command: Message, backend: Backend, mesh: Mesh, point: Point, timing: Timing) -> Message:
        """Parity on mesh rank 0, nothing elsewhere; keeps reference and outputs where the command names a place."""
        assert timing.latents is not None, "an iteration leaves latents behind"
        latents = backend.gather(timing.latents)
        if mesh.rank != 0:
            return {}
        image = timing.image
        if command.get("outputs"):
            _save_outputs(Path(command["outputs"]), latents, image, point.label)
        if not finite(latents):
            return {"ok": False, "reason": "the latents hold NaN or infinite values"}
        made_by = f"{point.engine} u{point.ulysses}r{point.ring} {point.execution}"
        exact = point.vae != "tiled"
        truth = from_truth(latents, Path(command["truth"])) if command.get("truth") else {}
        if command.get("save_reference"):
            kept = image if exact else None  # nobody is held to an approximation
            save_result(Path(command["save_reference"]), latents, kept, made_by)
            return {"ok": True, "reference": "itself", **truth}
        if not command.get("reference"):
            return truth
        reference = Path(command["reference"])
        found = compare(latents, image, reference, dtype=point.dtype, exact_image=exact)
        if exact and image is not None and found["ok"] and "image_max_abs" not in found:  # a point without one made it
            add_image(reference, image, made_by)
        return found | truth

    def _profile(self, command: Message, backend: Backend, mesh: Mesh, point: Point) -> dict[str, Any]:
        """Seconds a step by kind of work, from one more image; measured on mesh rank 0.

        On one rank a profiler that fails costs the attribution, not the times taken before it.
        """
        if not (command["measure"] or {}).get("profile") or not point.steps:
            return {}
        self.note("profile")
        embeddings = backend.encode()
        if mesh.rank == 0:
            try:
                to_peers = getattr(backend, "symmetric_bytes", 0) > 0
                return profile_step(lambda: backend.denoise(embeddings), self.device, point.steps, to_peers=to_peers)
            except RuntimeError as error:
                if mesh.size > 1:  # the other ranks are in step with this one no more
                    raise
                return {"note": f"not profiled: {brief(error)}"}
        backend.denoise(embeddings)
        return {}

    def _mesh(self, point: Point) -> Mesh | None:
        key = (point.ulysses, point.ring)
        if key not in self._meshes:
            self._meshes[key] = build_mesh(point.ulysses, point.ring, self.device)
        return self._meshes[key]

    def _error(self, error: Exception, watch: MemoryWatch | None) -> Message:
        report = describe(error, self._stage, self._iteration)
        if report["kind"] == "oom" and watch:
            with contextlib.suppress(RuntimeError):
                report["bytes_free"] = watch.free_bytes()
        return report

    def _recover(self, report: Message) -> bool:
        """Frees what the point held. Whether this rank can run another point: its device still answers."""
        self.note("recover")
        try:
            self._free()
            synchronize(self.device)
        except RuntimeError as error:
            report["message"] += f"; the device does not answer any more ({brief(error)})"
            return False
        return True

    def forget_meshes(self) -> None:
        """Drops every group but the world's: a failed point may have left messages in them. Collective, on CPUs.

        NCCL groups stay: `_recover` has waited for the device, so nothing is left in their streams.
        """
        if self.device.type == "cuda":
            return
        for mesh in self._meshes.values():
            if mesh is not None:
                groups = {id(g): g for g in (mesh.group, mesh.ulysses_group, mesh.ring_group) if g is not None}
                for group in groups.values():
                    dist.destroy_process_group(group)
        self._meshes.clear()

    def _free(self) -> None:
        gc.collect()  # quick: the worker has frozen what was imported
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _over_time(host: list[tuple[float | None, Link]]) -> tuple[list[float], Link]:
    """Launch costs taken before the images and after them, and the links' means."""
    issued = [seconds for seconds, _ in host if seconds is not None]
    links = [link for _, link in host]
    mean = {
        kind: {**row, "seconds": statistics.fmean(link[kind]["seconds"] for link in links)}
        for kind, row in (links[0] if links else {}).items()
    }
    return issued, mean


def _with_symmetric(memory: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """Adds the buffers that peers write into, which torch's allocator does not count."""
    held = int(getattr(backend, "symmetric_bytes", 0))
    sums = {key: memory[key] + held for key in ("peak_bytes", "reserved_bytes")}
    return memory | sums | {"symmetric_bytes": held}


def _save_outputs(folder: Path, latents: torch.Tensor, image: torch.Tensor | None, label: str) -> None:
    """`latents.safetensors` and `image.png`, as the records' contract names them."""
    save_result(folder / "latents.safetensors", latents, None, label)
    if image is not None:
        from PIL import Image

        Image.fromarray(image.cpu().numpy()).save(folder / "image.png")
