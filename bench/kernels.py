"""How many kernels a layer is, and how many bytes go through memory for what is no matrix product: counted, not timed.

    python -m bench.kernels [--recipes ul2_124m ...] [--out DIR]

Eager, each operator that is no view is a kernel, which reads its arguments and writes its results. Compiled, Inductor says what
it made of them: what it fuses, and what it calls. Counted on CPU in bf16, with `sdpa`, whose matrix of scores a fused kernel
keeps; on a GPU Inductor may fuse otherwise, and `flex` is its own kernel. The roofline of `plan` stands on these numbers
(pretrain/plan/roofline.py).
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._inductor import metrics
from torch._inductor.compile_fx import inductor_metrics_log
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu_common import engine_of
from pretrain.versions import device_name

if TYPE_CHECKING:
    from pretrain.config import Run
    from pretrain.engine.engine import Engine

HOME = Path(__file__).parent
TOKENS = 512
SMALL = ["--model.num_layers", "2", "--data.sequence_length", str(TOKENS), "--steps", "10", "--ds.bf16.enabled", "true"]
METHOD = ["--ds.progressive_subnetwork", '{"method": "full"}', "--model.attention", "sdpa"]
HOW = {
    "eager": ["--compile", "none", "--model.recompute", "none"],
    "compiled": ["--compile", "layers", "--model.recompute", "none"],
    "compiled, selective": ["--compile", "layers", "--model.recompute", "selective"],
}
PRODUCTS = ("mm", "addmm", "bmm", "_scaled_dot_product", "flex_attention")
"""Operators whose time is that of their arithmetic, not of their memory."""


@dataclass(frozen=True)
class Count:
    """One direction of a layer."""

    products: int
    """Kernels that are matrix products or attention."""
    others: int
    bytes: float
    """Read and written by the others, a token."""

    @property
    def kernels(self) -> int:
        return self.products + self.others


class _Eager(TorchDispatchMode):
    """Count what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.others, self.bytes = 0, 0, 0

    def __torch_dispatch__(self, func: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "profiler" or name == "detach" or _is_view(func):
            return result
        if name.startswith(PRODUCTS):
            self.products += 1
        else:
            self.others += 1
            read, written = ([leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in (args, result))
            self.bytes += sum(_size(tensor) for tensor in (*read, *written))
        return result

    def count(self, tokens: int) -> Count:
        return Count(self.products, self.others, self.bytes / tokens)


def _is_view(func: OpOverload) -> bool:
    """Does it hand on what it was given, under another shape? One says in its schema that it does not."""
    return func.overloadpacket.__name__ == "_unsafe_view" or any(
        r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
    )


def _size(tensor: Tensor) -> int:
    """Bytes behind it; what is spread by broadcasting is there once."""
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride()) if stride != 0]
    return torch.Size(sizes).numel() * tensor.element_size()


def eager(call: Callable[[], object], tokens: int) -> Count:
    """Count the kernels that a call dispatches."""
    with _Eager() as counted:
        call()
    return counted.count(tokens)


def compiled(call: Callable[[], object], tokens: int) -> Count:
    """Count the kernels of what Inductor makes in a call, all of which it must make in it."""
    metrics.reset()
    call()
    sizes = [(node, size) for node, size in metrics.nodes_num_elem if size > 0]  # what takes a tuple apart moves nothing
    called = [size for node, size in sizes if isinstance(node, ExternKernelSchedulerNode)]
    fused = [size for node, size in sizes if not isinstance(node, ExternKernelSchedulerNode | NopKernelSchedulerNode)]
    assert called and fused, "Inductor compiled nothing, or did not say what"
    return Count(len(called), len(fused), 4 * sum(fused) / tokens)  # its element is of four bytes


def _have_inductor_count() -> None:
    """Inductor counts what it would log, and only then. Nobody needs to read it."""
    inductor_metrics_log.setLevel(logging.INFO)
    inductor_metrics_log.propagate = False


def both_ways(engine: "Engine", run: "Run", count: Callable[[Callable[[], object], int], Count]) -> tuple[Count, Count]:
    """Count a layer's forward and backward pass."""
    from pretrain.model.decoder import Decoder
    from pretrain.model.layer import LayerInputs
    from pretrain.subnetwork import LayerPath

    chunk = engine.model.chunks[0]
    assert isinstance(chunk, Decoder)
    chunk.train()
    layer = chunk.decoder.layers[0]
    length = run.recipe.data.sequence_length
    residual = torch.randn(length, 1, run.recipe.model.hidden_size, dtype=torch.bfloat16).requires_grad_()
    inputs = LayerInputs(torch.zeros(1, 1, length, length, dtype=torch.bfloat16), LayerPath.full(run.recipe.model.num_layers))
    angles = None if chunk.rotary_pos_emb is None else chunk.rotary_pos_emb(length)
    results: list[Tensor] = []
    forward = count(lambda: results.append(layer(residual, inputs, rotary_pos_emb=angles)[0]), length)
    grad, wanted = torch.ones_like(results[0]), [residual, *layer.parameters()]
    # Not backward(), whose hooks would add to sums of whole gradients, whatever the number of tokens.
    return forward, count(lambda: torch.autograd.grad(results[0], wanted, grad), length)


def measure(recipe: str) -> dict[str, dict[str, Count]]:
    """Both directions of a layer, by how it runs."""
    _have_inductor_count()
    found = {}
    for how, options in HOW.items():
        torch._dynamo.reset()
        with (
            torch._inductor.config.patch(force_disable_caches=True),
            engine_of(recipe, "cpu", 1, 1, *SMALL, *METHOD, *options) as (engine, run, _),
        ):
            forward, backward = both_ways(engine, run, eager if how == "eager" else compiled)
        found[how] = {"forward": forward, "backward": backward}
    return found


def lines(recipe: str, found: dict[str, dict[str, Count]]) -> list[str]:
    """A table of one recipe."""
    head = ["", "kernels forward", "backward", "of them products and attention", "bytes a token forward", "backward"]
    text = [f"## {recipe}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for how, ways in found.items():
        forward, backward = ways["forward"], ways["backward"]
        products = f"{forward.products} and {backward.products}"
        text.append(
            f"| {how} | {forward.kernels} | {backward.kernels} | {products} | {forward.bytes:,.0f} | {backward.bytes:,.0f} |"
        )
    return [*text, ""]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipes", nargs="+", default=["ul2_124m", "ul2_1.6b"], help="ul2_124m ul2_1.6b")
    parser.add_argument("--out", type=Path, default=HOME / "results")
    args = parser.parse_args(words)
    facts = {"date": date.today().isoformat(), "torch": torch.__version__, "device": device_name("cpu"), "tokens": TOKENS}
    found = {recipe: measure(recipe) for recipe in args.recipes}
    text = ["# Kernels of a layer, and bytes through memory", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    for recipe, rows in found.items():
        text += lines(recipe, rows)
    text += [
        "Bytes are those of kernels that are neither matrix products nor attention, in bf16, without what tensor ranks send.",
        "",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    told = {
        name: {how: {way: asdict(c) for way, c in ways.items()} for how, ways in kinds.items()} for name, kinds in found.items()
    }
    (args.out / "kernels.json").write_text(json.dumps({"facts": facts, "rows": told}, indent=1) + "\n")
    (args.out / "kernels.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
