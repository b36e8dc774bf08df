"""Backward passes by a walk over autograd's graph, in Python: the engine itself asks CUDA for a context. Each node computes what
it always does."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

Edge = tuple[Node, int]


class Walk:
    """Takes the place of autograd's engine."""

    def __init__(self) -> None:
        self.hooks: dict[Edge, list[Callable[[Tensor], Tensor | None]]] = defaultdict(list)
        self._passes = 0
        self._callbacks: list[Callable[[], None]] = []

    def install(self) -> None:
        torch.autograd.Variable._execution_engine = self
        torch.Tensor.register_hook = lambda tensor, hook: self.hooks[tensor.grad_fn, tensor.output_nr].append(hook)
        torch._C._current_graph_task_id = lambda: self._passes  # by which recomputation knows what it has recomputed

    def is_checkpoint_valid(self) -> bool:
        """Recomputation may go backward within a backward pass."""
        return True

    def queue_callback(self, callback: Callable[[], None]) -> None:
        """Call this when the pass is over."""
        self._callbacks.append(callback)

    @torch.no_grad()
    def run_backward(
        self,
        tensors: Sequence[Tensor],
        grad_tensors: Sequence[Tensor | None],
        keep_graph: bool,
        create_graph: bool,
        inputs: Sequence[Tensor] = (),
        allow_unreachable: bool = False,
        accumulate_grad: bool = True,
    ) -> tuple[Tensor, ...]:
        """Add gradients to the leaves, as `torch.autograd.backward` does, or return those of `inputs`, as `grad` does."""
        if create_graph:
            raise NotImplementedError("gradients of gradients")
        self._passes += 1
        into: dict[Node, dict[int, Tensor]] = defaultdict(dict)
        for tensor, gradient in zip(tensors, grad_tensors):
            node, number = _edge_of(tensor)
            _add(into[node], number, torch.ones_like(tensor) if gradient is None else gradient)
        waiting, wanted, found = _arrivals(list(into)), [_edge_of(tensor) for tensor in inputs], {}
        ready = [node for node in into if not waiting[node]]
        while ready:
            node = ready.pop()
            arrived = into.pop(node, {})
            found |= {(node, number): gradient for number, gradient in arrived.items() if (node, number) in wanted}
            if wanted and not node.next_functions:
                continue  # a leaf's gradient stays as it was
            for (target, number), gradient in _through(node, self._hooked(node, arrived)):
                if gradient is not None:
                    _add(into[target], number, _fitting(gradient, target._input_metadata[number]))
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
        return tuple(found.get(edge) for edge in wanted)

    def _hooked(self, node: Node, arrived: dict[int, Tensor]) -> dict[int, Tensor]:
        for number, gradient in arrived.items():
            for hook in self.hooks.pop((node, number), ()):
                other = hook(gradient)
                arrived[number] = gradient = gradient if other is None else other
        return arrived


def _add(into: dict[int, Tensor], number: int, gradient: Tensor) -> None:
    into[number] = into[number] + gradient if number in into else gradient


def _fitting(gradient: Tensor, of: Any) -> Tensor:
    """Undo what broadcasting and mixed types did on the way there, as the engine does."""
    return gradient.sum_to_size(of.shape).to(of.dtype)


def _edge_of(tensor: Tensor) -> Edge:
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _edges(node: Node) -> list[Edge]:
    return [edge for edge in node.next_functions if edge[0] is not None]


def _arrivals(roots: list[Node]) -> Counter[Node]:
    """How many edges lead to each node from the nodes that are to be run."""
    counted: Counter[Node] = Counter()
    seen, left = set(roots), list(roots)
    while left:
        for target, _ in _edges(left.pop()):
            counted[target] += 1
            if target not in seen:
                seen.add(target)
                left.append(target)
    return counted


def _through(node: Node, arrived: dict[int, Tensor]) -> list[tuple[Edge, Tensor | None]]:
    """Run a node; each edge that leaves it, with its gradient."""
    edges: list[Any] = list(node.next_functions)
    if not arrived:  # nothing came this way
        return [(edge, None) for edge in edges if edge[0] is not None]
    outputs = node._input_metadata
    gradients = [arrived.get(number) for number in range(len(outputs))]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        filled = [
            torch.zeros(of.shape, dtype=of.dtype, device=of.device) if own is None else own for own, of in zip(gradients, outputs)
        ]
        made = node.apply(*filled)
        made = made if isinstance(made, tuple) else (made,)
        made = [gradient for gradient, wanted in zip(made, node.needs_input_grad) if wanted]
        edges = _edges(node)
    else:
        made = node(*gradients)
        made = made if isinstance(made, tuple) else (made,)
    return [(edge, gradient) for edge, gradient in zip(edges, made) if edge[0] is not None]
