"""The forward of FLUX.1's two kinds of block over this rank's tokens, in parts that leave attention outside.

Each part is a plain function of tensors, so that it can be compiled by itself; between parts runs what talks to
other ranks. x is the residual stream `S B h`, n its modulated norm, computed by whoever wrote x last.

    x, n = double_block(parts, attention, rope, x, n, weights, gates, norms)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from xdit_bench.engine.modulation import Affine
from xdit_bench.engine.ops import Ops
from xdit_bench.engine.usp import UspAttention
from xdit_bench.engine.weights import DoubleWeights, Linear, Pair, SingleWeights


class Rope(NamedTuple):
    """Angles of this rank's tokens, each `S D/2`, the first `text` of them text."""

    text: int
    cos: Tensor
    sin: Tensor


class Parts(NamedTuple):
    """The parts of the blocks, bound to one implementation of the operations, perhaps compiled."""

    begin: Callable[..., tuple[Tensor, ...]]  # norm to slabs of heads
    double_end: Callable[..., tuple[Tensor, Tensor]]
    mlp: Callable[[Tensor, int, Pair, Pair], Tensor]
    single_mlp: Callable[[Tensor, int, Linear], Tensor]
    single_mlp_out: Callable[[Tensor, int, Linear], Tensor]
    single_end: Callable[..., tuple[Tensor, Tensor]]


def make_parts(ops: Ops, wrap: Callable[[Callable[..., object]], Callable[..., object]] = lambda f: f) -> Parts:
    """Binds the parts to `ops`; `wrap` may compile each."""

    def begin(
        n: Tensor, rope: Rope, layer: Pair, first: int, parts: int, norms: Sequence[Pair], ulysses: int, travels: bool
    ) -> tuple[Tensor, ...]:
        """Slabs of what `layer` projects to: `parts` of q, k and v from `first` on. Where they travel, keys with values
        come first, then queries."""
        projected = ops.linear(n, rope.text, layer)
        heads = projected.view(*projected.shape[:2], parts, -1, 2 * rope.cos.shape[1])

        def rotate(heads: Tensor, first: int, packed: bool) -> Tensor:
            return ops.rotate(heads, first, rope.text, *norms, rope.cos, rope.sin, ulysses, packed)

        if not travels or parts < 3:
            return (rotate(heads, first, travels),)
        return rotate(heads[:, :, 1:], 1, True), rotate(heads[:, :, :1], 0, ulysses > 1)

    def double_end(
        x: Tensor, a: Tensor, text: int, w: DoubleWeights, gates: Sequence[Pair], norms: Sequence[Affine]
    ) -> tuple[Tensor, Tensor]:
        x, n = ops.gated_add_norm(x, ops.linear(a, text, w.out), text, gates[0], norms[0])
        y = ops.mlp(n, text, w.ff_in, w.ff_out)
        return ops.gated_add_norm(x, y, text, gates[1], norms[1])

    def single_mlp(n: Tensor, text: int, layer: Linear) -> Tensor:
        return ops.linear_gelu(n, text, Pair(layer, layer))

    def single_mlp_out(hidden: Tensor, text: int, layer: Linear) -> Tensor:
        return ops.linear(hidden, text, Pair(layer, layer))

    def single_end(
        x: Tensor, a: Tensor, y: Tensor, text: int, out_attention: Tensor, gate: Pair, norm: Affine
    ) -> tuple[Tensor, Tensor]:
        return ops.gated_add_norm(x, ops.add_product(y, a, out_attention), text, gate, norm)

    return Parts(*(wrap(f) for f in (begin, double_end, ops.mlp, single_mlp, single_mlp_out, single_end)))  # type: ignore[arg-type]


def double_block(
    parts: Parts,
    attention: UspAttention,
    rope: Rope,
    x: Tensor,
    n: Tensor,
    w: DoubleWeights,
    gates: Sequence[Pair],
    norms: Sequence[Affine],
) -> tuple[Tensor, Tensor]:
    """A `FluxTransformerBlock`. gates: after attention, after the MLP; norms: before the MLP, of the next block.

    Keys and values are projected and leave first; the queries' projection runs beside their way.
    """
    mesh = attention.mesh
    rest = ((w.norm_q, w.norm_k), mesh.ulysses, mesh.size > 1)
    if attention.keys_first and mesh.size > 1:
        sent = attention.start(parts.begin(n, rope, w.kv, 1, 2, *rest), beside=False)
        attention.send(sent, *parts.begin(n, rope, w.q, 0, 1, *rest))
    else:
        sent = attention.start(parts.begin(n, rope, w.qkv, 0, 3, *rest), beside=False)
    a = attention.finish(attention.attend(sent))
    return parts.double_end(x, a, rope.text, w, gates, norms)


def single_block(
    parts: Parts,
    attention: UspAttention,
    rope: Rope,
    x: Tensor,
    n: Tensor,
    w: SingleWeights,
    gate: Pair,
    norm: Affine,
) -> tuple[Tensor, Tensor]:
    """A `FluxSingleTransformerBlock`. Each exchange runs beside a half of the MLP, which needs no attention."""
    mesh = attention.mesh
    norms = (w.norm_q, w.norm_k)
    slabs = parts.begin(n, rope, Pair(w.qkv, w.qkv), 0, 3, norms, mesh.ulysses, mesh.size > 1)
    sent = attention.start(slabs, beside=mesh.size > 1)
    if mesh.size == 1:  # nothing travels: the MLP may as well run in one go
        back = attention.attend(sent)
        y = parts.mlp(n, rope.text, Pair(w.mlp, w.mlp), Pair(w.out_mlp, w.out_mlp))
    else:
        hidden = parts.single_mlp(n, rope.text, w.mlp)
        back = attention.attend(sent)
        y = parts.single_mlp_out(hidden, rope.text, w.out_mlp)
    return parts.single_end(x, attention.finish(back), y, rope.text, w.out_attention, gate, norm)
