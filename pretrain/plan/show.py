"""`plan` on the console: tables first, then warnings."""

from rich.console import Console

from pretrain.config import Run
from pretrain.plan import cluster_tables, tables
from pretrain.plan.cost import Cluster, why_not_plain
from pretrain.plan.link import Links
from pretrain.plan.target import offers
from pretrain.plan.warnings import room_warnings, target_warnings, warnings


def print_plan(
    run: Run,
    cluster: Cluster | None = None,
    suggestions: bool = False,
    target: float | None = None,
    links: Links | None = None,
    scale_to: int | None = None,
) -> None:
    """Build the model on the meta device, which allocates nothing, and show what the run would do.

    Args:
        target: how many times fewer layer operations path lengths are to be proposed for.
        links: of the cluster.
        scale_to: GPUs up to which larger clusters are looked at.
    """
    proposed = [] if target is None else offers(run, target)  # what cannot be fulfilled is reported first
    console = _console()
    by_paths = tables.paths(run)
    shown = [tables.size(run), tables.batches(run), tables.stages(run), *([] if by_paths is None else [by_paths])]
    shown += [tables.rates(run, console.options.ascii_only), tables.savings_table(run), tables.ranks(run)]
    warned = list(warnings(run))
    if cluster is not None:
        shown.append(cluster_tables.cost(run, cluster))
        warned += room_warnings(run, cluster)
        if links is not None:
            shown.append(cluster_tables.link(run, cluster, links))
            if scale_to is not None:
                shown.append(cluster_tables.scale(run, cluster, links, scale_to))
        if suggestions:
            shown.append(cluster_tables.suggestions(run, cluster))
    if target is not None:
        shown.append(tables.target_table(proposed, target))
        warned += target_warnings(proposed, target)
    for table in shown:
        console.print(table)
    for warning in warned:
        console.print(f"warning: {warning}")
    console.print("everything that can be checked without data holds")


def print_suggestions(run: Run, cluster: Cluster) -> bool:
    """The layouts alone, for a run whose own cannot run; False if there is none."""
    table = cluster_tables.suggestions(run, cluster)
    _console().print(
        table if table.row_count else f"no layout of this recipe can run there; without splitting the model: {why_not_plain(run)}"
    )
    return table.row_count > 0


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=110)
