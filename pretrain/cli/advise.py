"""`advise`: which method to try on a cluster, what it would save, and what has been measured of its loss."""

import argparse
import math

from pretrain.cli.arguments import SETTINGS, TRAIN_OPTIONS, explained, recipe_arguments, require_recipe, train_arguments
from pretrain.config.checks import check
from pretrain.config.command_line import option_pairs
from pretrain.config.read import parse_run
from pretrain.config.strict import COMMAND_LINE
from pretrain.errors import UserError
from pretrain.plan.hardware import GPUS

HELP, EPILOG = "say which method to try: hours saved, and what was measured of its loss", SETTINGS
OPTIONS = ("nodes", "gpus-per-node", "gpu", "mfu", "link-gbps", "intra-node-gbps", "budget", "tolerance", *TRAIN_OPTIONS)


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--gpu", default="h100", help=", ".join(GPUS))
    parser.add_argument("--mfu", type=float, help="share of the GPU's peak with all layers; if left out, estimated")
    parser.add_argument(
        "--link-gbps",
        type=float,
        metavar="RATE",
        help="of a node to others, one direction, in Gbit/s; if left out, sending costs nothing",
    )
    parser.add_argument("--intra-node-gbps", type=float, metavar="RATE", help="of a GPU to others of its node")
    parser.add_argument("--budget", type=float, metavar="HOURS", help="how long the cluster is yours")
    parser.add_argument(
        "--tolerance", type=float, metavar="NATS", default=0.03, help="held-out loss that may be lost (default %(default)s)"
    )
    train_arguments(parser.add_argument_group("accepted, so that the words for train can be used"))


def run(args: argparse.Namespace, rest: list[str]) -> int:
    if explained(args):
        return 0
    require_recipe(args)
    _require_sensible(args)
    # What the recipe's own method is does not matter, nor whether it suits what the words change.
    own = "ds.progressive_subnetwork"
    pairs = [pair for pair in option_pairs(rest, OPTIONS) if not pair[0].lstrip("-").startswith(own)]
    run = parse_run(args.recipe, [*pairs, (f"--{own}", '{"method": "full"}')], args.ds_config, args.nodes * args.gpus_per_node)
    check(run)
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.advise.advice import advise
    from pretrain.advise.evidence import read_evidence
    from pretrain.advise.show import print_advice
    from pretrain.plan.cost import Cluster
    from pretrain.plan.link import Links
    from pretrain.plan.parameters import count_parameters
    from pretrain.plan.warnings import room_warnings

    evidence, cluster = read_evidence(), Cluster(args.nodes, args.gpus_per_node, args.gpu, args.mfu)
    links = None
    if args.link_gbps is not None:
        links = Links(args.link_gbps, args.intra_node_gbps or GPUS[args.gpu].link_gbps)
    advice = advise(run, cluster, links, evidence, args.tolerance, math.inf if args.budget is None else args.budget)
    print_advice(run, advice, evidence, sum(count_parameters(run).values()), room_warnings(run, cluster))
    return 0


def _require_sensible(args: argparse.Namespace) -> None:
    """Refuse numbers that cannot be.

    Raises:
        UserError: the first one.
    """
    for name, least in (
        ("nodes", 1), ("gpus-per-node", 1), ("link-gbps", 1e-3), ("intra-node-gbps", 1e-3), ("budget", 1e-3), ("tolerance", 0)
    ):  # fmt: skip
        value = getattr(args, name.replace("-", "_"))
        if value is not None and not least <= value < math.inf:
            raise UserError(f"{COMMAND_LINE}: --{name} {value:g} must be at least {least:g}")
    if args.intra_node_gbps is not None and args.link_gbps is None:
        raise UserError(f"{COMMAND_LINE}: --intra-node-gbps needs --link-gbps")
    if args.mfu is not None and not 1e-3 <= args.mfu <= 1:
        raise UserError(f"{COMMAND_LINE}: --mfu {args.mfu:g} must be at least 0.001 and at most 1")
    if args.gpu not in GPUS:
        raise UserError(f"{COMMAND_LINE}: --gpu {args.gpu}: known are {', '.join(GPUS)}")
