"""What `plan` shows of a run on a cluster: time, money, waiting for links, other layouts."""

from rich.table import Table

from pretrain.config import Run
from pretrain.plan.balance import spread
from pretrain.plan.cost import Cluster, hours, mfu, speed, suggest
from pretrain.plan.link import BENDS_AT, Links, forecast, scaled
from pretrain.plan.tables import table_of

MOST_SUGGESTIONS = 12


def cost(run: Run, cluster: Cluster) -> Table:
    table = table_of(
        f"{cluster.nodes} node{'s' * (cluster.nodes > 1)} of {cluster.gpus_per_node} {cluster.gpu_name}, {_mfu(run, cluster)}",
        "",
        "all layers",
        run.method.name,
    )
    full, paths = hours(run, cluster)
    pace = speed(run)
    table.add_row("hours", f"{full:,.1f}", f"{paths:,.1f}")
    table.add_row("GPU hours", f"{full * cluster.gpus:,.1f}", f"{paths * cluster.gpus:,.1f}")
    if cluster.price_per_gpu_hour is not None:
        price = cluster.price_per_gpu_hour * cluster.gpus
        table.add_row("cost", f"{full * price:,.0f}", f"{paths * price:,.0f}")
    table.add_row("ideal speed-up of this layout", "1.00x", f"{1 / pace.ratio:.2f}x")
    table.add_row("busiest pipeline rank's share of the operations", f"{100 * pace.busiest:.1f} %", "")
    if run.recipe.parallel.pipeline > 1:
        even = [spread(run, stage).busiest(run.recipe.parallel.pipeline) for stage in run.method.stages]
        table.add_row(
            "busiest pipeline rank's active layers over the mean, by stage", "1.00", " ".join(f"{ratio:.2f}" for ratio in even)
        )
    table.add_row("busiest pipeline rank waits (fill and drain)", f"{100 * pace.bubble:.1f} %", "")
    return table


def link(run: Run, cluster: Cluster, links: Links) -> Table:
    found = forecast(run, cluster, links)
    table = table_of(
        f"steps with {links.node:g} Gbit/s between nodes and {links.gpu:g} in them; {_mfu(run, cluster)} but for waiting",
        "",
        "computing",
        "sent by a GPU",
        "step",
        "waits",
    )
    named = [("all layers", found.full), *((f"stage {n}", pace) for n, pace in enumerate(found.stages, start=1))]
    for name, pace in named:
        table.add_row(
            name,
            f"{pace.computing * 1000:,.1f} ms",
            f"{pace.sent.total / 1e6:,.1f} MB",
            f"{pace.whole * 1000:,.1f} ms",
            f"{100 * (1 - pace.computing / pace.whole):.1f} %",
        )
    table.add_row("speed-up of the run", f"{1 / speed(run).ratio:.2f}x", "", f"{found.speedup:.2f}x", "")
    return table


def scale(run: Run, cluster: Cluster, links: Links, most: int) -> Table:
    table = table_of(
        f"with more GPUs and the same batch, to {most:,}",
        "GPUs",
        "hours, all layers",
        f"hours, {run.method.name}",
        "speed-up",
        "ideal",
        "waits",
        "",
    )
    bent = False
    for larger, grown in scaled(run, cluster, most):
        if grown is None:
            table.add_row(f"{larger.gpus:,}", "–", "–", "–", "–", "–", "cannot run so")
            continue
        found = forecast(grown, larger, links)
        bends, bent = not bent and found.waits > BENDS_AT, bent or found.waits > BENDS_AT
        table.add_row(
            f"{larger.gpus:,}",
            f"{found.full.whole * run.steps / 3600:,.1f}",
            f"{found.seconds * run.steps / 3600:,.1f}",
            f"{found.speedup:.2f}x",
            f"{1 / speed(grown).ratio:.2f}x",
            f"{100 * found.waits:.1f} %",
            "bends here" if bends else "",
        )
    return table


def suggestions(run: Run, cluster: Cluster) -> Table:
    table = table_of(
        "layouts that can run, the best first",
        "tensor",
        "sequence",
        "pipeline",
        "chunks",
        "data",
        "GiB a GPU",
        "fits",
        "step, relative",
        "ideal speed-up",
    )
    found = suggest(run, cluster)
    for s in found[:MOST_SUGGESTIONS]:
        p = s.run.recipe.parallel
        table.add_row(
            str(p.tensor),
            "yes" if p.sequence else "no",
            str(p.pipeline),
            str(p.virtual),
            str(s.run.data_parallel),
            f"{s.memory_gib:.1f}",
            "yes" if s.fits else "no",
            f"{s.seconds / found[0].seconds:.2f}",
            f"{1 / speed(s.run).ratio:.2f}x",
        )
    return table


def _mfu(run: Run, cluster: Cluster) -> str:
    if cluster.given_mfu is not None:
        return f"{100 * cluster.given_mfu:g} % MFU"
    without = ", without what tensor ranks send" if run.recipe.parallel.tensor > 1 else ""
    without += ", in bf16: of FP8 nothing is measured" if run.recipe.precision == "fp8" else ""
    return f"{100 * mfu(run, cluster):.3g} % MFU (estimated{without})"
