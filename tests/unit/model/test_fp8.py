"""Products in FP8 are those of rounded numbers, in both passes, of whole matrices and of their blocks."""

import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.engine.micro_batch import MicroBatch
from pretrain.errors import UserError
from pretrain.model import fp8
from pretrain.model.linear import Fp8ColumnLinear, Fp8RowLinear, joined
from pretrain.ranks.device import require_fp8
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.width import COLUMNS
from tests.support.layouts import FP8

ROWS, IN, OUT = 48, 32, 64


def rounded(matrix: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """What is left of a matrix in 8 bits, in float64, worked out from what a format's digits and range are."""
    digits, largest, lowest = {torch.float8_e4m3fn: (3, 448.0, -6), torch.float8_e5m2: (2, 57344.0, -14)}[kind]
    factor = largest / matrix.abs().max().float()
    scaled = (matrix.float() * factor).double()  # as many digits as the program has: what is half way goes the same way
    exponent = torch.floor(torch.log2(scaled.abs().clamp(min=2.0**-40))).clamp(min=lowest)
    step = 2.0 ** (exponent - digits)
    return (torch.round(scaled / step) * step).clamp(-largest, largest) / factor


def near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether they differ by the rounding of a result to bf16 alone."""
    return bool(torch.linalg.norm(ours.double() - theirs) < 4e-3 * torch.linalg.norm(theirs))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_are_rounded_to_the_nearest(kind):
    matrix = torch.randn(200, 100, generator=torch.Generator().manual_seed(0)) ** 5
    numbers, scale = fp8.scaled(matrix, kind)
    ours, theirs = numbers.double() * scale.double(), rounded(matrix, kind)
    assert numbers.dtype == kind and numbers.double().abs().max() == torch.finfo(kind).max
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)


@pytest.fixture(autouse=True)
def as_gpus_want_it(monkeypatch):
    """What a CPU does not ask for: a first matrix by rows, a second one by columns, sides that are multiples of 16, and sums of
    few bits where nothing is summed again."""
    product, seen = fp8.F.scaled_mm, []

    def checked(first, second, *args, use_fast_accum, **kwargs):
        assert first.stride(1) == 1 and second.stride(0) == 1
        assert first.shape[1] % 16 == 0 and second.shape[1] % 16 == 0
        assert use_fast_accum == ({first.dtype, second.dtype} == {fp8.NUMBERS})
        seen.append(first.shape)
        return product(first, second, *args, use_fast_accum=use_fast_accum, **kwargs)

    monkeypatch.setattr(fp8.F, "scaled_mm", checked)
    return seen


@pytest.mark.parametrize("linear", ["column", "row", "column, bias", "column, blocks", "row, blocks"])
def test_a_linear_and_its_gradients_are_products_of_rounded_numbers(ranks, project, linear):
    biases = f"model.biases={'qkv' if 'bias' in linear else 'false'}"
    engine = build_engine(project.run(*(f"{key}={value}" for key, value in FP8.items()), biases), ranks)
    layer, random = engine.schedule.chunks[0].decoder.layers[0], torch.Generator().manual_seed(1)
    module = layer.mlp.linear_fc1 if "column" in linear else layer.mlp.linear_fc2
    bias = torch.zeros(1)
    if "bias" in linear:
        module = layer.self_attention.linear_qkv
        bias = module.bias.detach().normal_(generator=random)
    assert isinstance(module, Fp8ColumnLinear if "column" in linear else Fp8RowLinear)
    whole = module.weight.detach()
    if "blocks" in linear:
        module.cut(COLUMNS, 2)
    blocks = module.weights()
    input_ = torch.randn(6, 8, whole.shape[1], generator=random).bfloat16().requires_grad_()
    output, _ = module(input_, blocks)
    grad = (torch.randn(output.shape, generator=random) ** 3).bfloat16()
    of_input, *of_blocks = torch.autograd.grad(output, [input_, *blocks.blocks], grad)

    x, w = (rounded(matrix.detach().flatten(0, -2), torch.float8_e4m3fn) for matrix in (input_, whole))
    g = rounded(grad.flatten(0, 1), torch.float8_e5m2)
    for ours, theirs in ((output, x @ w.t() + bias), (of_input, g @ w)):
        assert near(ours.flatten(0, 1), theirs)
    of_weight = joined(of_blocks, 0, module.matrices) if "column" in linear else joined(of_blocks, 1)
    assert near(of_weight, g.t() @ x)
    assert not near(output.flatten(0, 1), input_.detach().flatten(0, 1).double() @ whole.double().t()), "FP8 would not show"


@pytest.mark.parametrize(("recompute", "forwards"), [("none", 1), ("selective", 1), ("layer", 2)])
def test_all_products_of_active_layers_are_in_fp8_and_no_others(project, ranks, recompute, forwards):
    run = project.run(*(f"{key}={value}" for key, value in FP8.items()), f"model.recompute={recompute}")
    data, engine = open_data(run), build_engine(run, ranks)
    (batch, *_), layers = data.batch(1), run.recipe.model.num_layers
    data.close()

    class Count(TorchDispatchMode):
        counts: Counter = Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.counts[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    def products(active: int) -> Counter:
        path = LayerPath(tuple(n < active for n in range(layers)), (1.0,) * layers)
        with Count() as count:
            count.counts = Counter()
            engine.forward_backward([MicroBatch(batch, path)], scale=1.0)
        engine.model.zero_grad()
        return count.counts

    none, three = products(0), products(3)
    assert three["_scaled_mm_v2"] == 3 * 4 * (forwards + 2), "four linears, and each twice backward"
    assert none["_scaled_mm_v2"] == 0
    assert three["mm"] == none["mm"] > 0, "the output projection stays as it is"


PARTS = "{method: raptr_parts, path_lengths: 4-8, group_lengths: 2-4, ffn_lengths: 2-4, skipped_update: none}"


def test_parts_of_layers_run_in_fp8(project, ranks, as_gpus_want_it):
    settings = ("model.head_dim=16", f"ds.progressive_subnetwork={PARTS}")
    run = project.run(*(f"{key}={value}" for key, value in FP8.items()), *settings)
    data, engine = open_data(run), build_engine(run, ranks)
    losses = [engine.step(step, data.batch(step), run.method.paths(step)).loss for step in (1, 2)]
    data.close()
    assert all(map(math.isfinite, losses))
    assert {shape[1] for shape in as_gpus_want_it} >= {32, 2 * 16}, "columns of half of the feed-forward part, and of two groups"


def test_zeros_stay_zeros_and_what_is_not_finite_stays_so():
    weight = torch.randn(OUT, IN).bfloat16()
    assert not fp8.multiplied(torch.zeros(ROWS, IN).bfloat16(), weight).any()
    assert not fp8.multiplied(torch.full((ROWS, IN), 1e-30).bfloat16(), weight).isnan().any()
    for bad in (float("nan"), float("inf")):
        input_ = torch.randn(ROWS, IN).bfloat16()
        input_[3, 5] = bad
        assert not torch.isfinite(fp8.multiplied(input_, weight)[3]).any()


def test_a_gpu_without_fp8_is_refused_and_a_cpu_is_not(monkeypatch):
    require_fp8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    require_fp8(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(UserError, match=r"8\.9 or more .*NVIDIA A100 has 8\.0; leave it out"):
        require_fp8(torch.device("cuda", 0))
