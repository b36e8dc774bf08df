"""The model card: what was trained, how, and what it cost."""

from math import prod
from pathlib import Path

from pretrain.checkpoint.manifest import Manifest
from pretrain.config import Run
from pretrain.config.model import Model
from pretrain.observe.metrics import evaluation_rows, read_rows, training_rows


def model_card(run: Run, manifest: Manifest, path: Path, architecture: str) -> str:
    """Return the card in the form that model hubs show."""
    recipe, block, data = run.recipe, run.ds.progressive_subnetwork, run.recipe.data
    parameters = sum(map(prod, manifest.parameters.values()))
    facts = [
        ("class in transformers", f"`{architecture}`"),
        (
            "parameters",
            (
                f"{parameters:,}, of which"
                f" {(recipe.model.padded_vocab_size - recipe.model.vocab_size) * recipe.model.hidden_size:,} pad the vocabulary"
                " and are left out"
            ),
        ),
        ("layers, width, heads, groups of keys and values", ", ".join(map(str, _shape(recipe.model)))),
        *([("began with the weights of", f"`{Path(recipe.init_from).name}`")] if recipe.init_from else []),
        ("objective", data.objective),
        ("step", f"{manifest.step:,} of {recipe.steps:,}"),
        (
            "positions seen",
            f"{manifest.samples * data.sequence_length:,} ({manifest.samples:,} packed samples of {data.sequence_length:,})",
        ),
        ("method", _method(run)),
        *_measured(path, manifest.step),
        ("optimizer", f"{run.ds.optimizer.type}, learning rate {run.ds.optimizer.params.lr:g}, batch {run.batch} samples"),
        ("precision", run.precision + (" with fp32 masters" if run.ds.bf16.enabled else "")),
        ("seed, path seed", f"{recipe.seed}, {block.given.get('path_seed', recipe.seed)}"),
        ("made with", "; ".join(manifest.versions)),
    ]
    tags = ["progressive-subnetworks", block.method, data.objective]
    origin = f"base_model: {Path(recipe.init_from).name}\n" if recipe.init_from else ""
    front = f"---\nlibrary_name: transformers\n{origin}tags:\n" + "".join(f"- {tag}\n" for tag in tags) + "---\n"
    table = "| | |\n|---|---|\n" + "".join(f"| {name} | {text} |\n" for name, text in facts)
    return f"{front}\n# A model trained with progressive subnetworks\n\n{data.made_as.use}\n\n{table}"


def _shape(model: Model) -> tuple[int, ...]:
    return model.num_layers, model.hidden_size, model.num_attention_heads, model.groups


def _method(run: Run) -> str:
    block = run.ds.progressive_subnetwork
    if block.method == "full":
        return "full: all layers in every step"
    shown = block.given
    if lengths := shown.get("path_lengths"):
        shown["path_lengths"] = "-".join(map(str, lengths))
    return f"{block.method}: {', '.join(f'{key} {value}' for key, value in shown.items())}" + " (arXiv 2402.05913)" * (
        block.method == "raptr"
    )


def _measured(path: Path, step: int) -> list[tuple[str, str]]:
    """Return what the rows of the run say, where they are at hand."""
    metrics = next((file for folder in (path, path.parent.parent) if (file := folder / "metrics.jsonl").is_file()), None)
    rows = [row for row in read_rows(metrics) if row["step"] <= step] if metrics else []
    facts = []
    if steps := training_rows(rows):
        facts.append(("layer FLOPs saved", f"{100 * steps[-1]['layer_flops_saved']:.1f} % of those of all layers in every step"))
        facts.append(("training loss", f"{steps[-1]['loss']:.4f} at step {steps[-1]['step']:,}, through that step's path"))
    if evaluations := evaluation_rows(rows):
        last = evaluations[-1]
        parts = ", ".join(
            f"{name.removeprefix('eval_loss_')} {value:.4f}" for name, value in last.items() if name.startswith("eval_loss_")
        )
        facts.append(
            ("held-out loss", f"{last['eval_loss']:.4f} at step {last['step']:,}, all layers" + (f" ({parts})" if parts else ""))
        )
    return facts
