"""Where a step's code asks the device for a number, which waits for it, or may copy from pageable memory: by the form of the
code, which sees our own modules alone. test_train.py counts what really happens."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pretrain"
MODULES = [
    *sorted(path for folder in ("engine", "optim", "model") for path in (PACKAGE / folder).glob("*.py")),
    PACKAGE / "train.py",
    PACKAGE / "observe/observer.py",
]
ASKS = {"item", "tolist", "nonzero", "cpu", "cuda", "numpy", "synchronize", "equal", "unique", "masked_select"}
CONVERTS = {"float", "int", "bool"}
KNOWN = {
    "engine/agreement.py targets_and_paths": "targets and fingerprints, which are on the CPU",
    "engine/agreement.py Outcome.read": "the one wait of a step, for the numbers of the step before",
    "engine/agreement.py held_out_totals": "once an evaluation",
    "engine/decoding.py Decoding.__init__": "once a batch of texts",
    "engine/engine.py Engine.agreement": "once a run",
    "engine/engine.py build_engine": "once a run",
    "engine/scoring.py together": "once for many requests",
    "engine/micro_batch.py MicroBatch.branches": "an array on the CPU",
    "engine/micro_batch.py MicroBatch.is_causal": "arrays on the CPU",
    "engine/micro_batch.py in_one_copy": "the one copy of a step, from pinned memory",
    "model/decoder.py Decoder.global_name": "a name",
    "model/fp8.py scaled": "a type",
    "model/layer.py SkippableLayer.forward": "the residual scale, which stays on the CPU",
    "model/split.py is_split": "an attribute",
    "observe/observer.py Observer._eta": "a fraction",
    "optim/model.py ChunkedModel.is_copy": "an attribute",
    "optim/names.py layer_of": "a name",
    "optim/rates.py learning_rate": "numbers of Python",
    "optim/settings.py deepspeed_json": "a setting",
    "train.py Begun.add": "a number of Python",
}
"""Each function that does, and why it may. Conditions on tensors and indices that are masks are not seen."""


def suspects(code: str) -> set[str]:
    """Names of functions that ask, convert or copy. `.to(dtype)` stays on its device and is none of it, if `dtype` says so."""
    found = set()

    def visit(node: ast.AST, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            inner = (*names, child.name) if isinstance(child, ast.FunctionDef | ast.ClassDef) else names
            if isinstance(child, ast.Call) and _is_suspect(child):
                found.add(".".join(inner))
            visit(child, inner)

    visit(ast.parse(code), ())
    return found


def _is_suspect(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id in CONVERTS and bool(call.args) and not isinstance(call.args[0], ast.Constant)
    if not isinstance(function, ast.Attribute):
        return False
    if function.attr == "to":
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        return not all(ast.unparse(argument).endswith("dtype") for argument in given)
    return function.attr in ASKS or ast.unparse(function) in ("torch.tensor", "torch.as_tensor", "torch.asarray")


def test_only_known_functions_may_wait_for_the_device():
    found = {f"{path.relative_to(PACKAGE)} {name}" for path in MODULES for name in suspects(path.read_text())}
    assert len(MODULES) > 30 and found == KNOWN.keys()


@pytest.mark.parametrize(
    "line",
    [
        "loss.item()",
        "float(norm)",
        "if bool(found): pass",
        "torch.cuda.synchronize()",
        "torch.tensor(0.0, device=device)",
        "batch.to(device, non_blocking=True)",
        "(losses * 2).tolist()",
        "batch.to(device=device)",
        "torch.equal(loss, norm)",
        "loss.cuda()",
    ],
)
def test_a_new_wait_is_noticed(line):
    assert suspects(f"class Engine:\n    def step(self, loss):\n        {line}\n") == {"Engine.step"}


def test_types_and_constants_are_no_waits():
    assert suspects("def step(x):\n    return x.to(x.dtype) + float('inf') + x.float()\n") == set()
