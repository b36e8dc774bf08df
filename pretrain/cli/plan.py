"""`plan`: check everything and show what a run would do."""

import argparse
import math

from pretrain.cli.arguments import (
    SETTINGS,
    TRAIN_OPTIONS,
    explained,
    quiet_argument,
    recipe_arguments,
    require_recipe,
    train_arguments,
    with_decay,
)
from pretrain.config.checks import check
from pretrain.config.command_line import option_pairs
from pretrain.config.read import parse_run
from pretrain.config.run import Run
from pretrain.config.strict import COMMAND_LINE
from pretrain.errors import UserError
from pretrain.plan.hardware import GPUS

HELP, EPILOG = "check everything and show what a run would do", SETTINGS
OPTIONS = (
    "nodes",
    "gpus-per-node",
    "gpu",
    "mfu",
    "price-per-gpu-hour",
    "suggest",
    "target-speedup",
    "link-gbps",
    "intra-node-gbps",
    "scale-to",
    "quiet",
    *TRAIN_OPTIONS,
)
DEFAULT_GPU = "h100"


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument("--nodes", type=int, help="of the cluster, for memory, time and money")
    parser.add_argument("--gpus-per-node", type=int)
    parser.add_argument("--gpu", default=DEFAULT_GPU, help=", ".join(GPUS))
    parser.add_argument(
        "--mfu", type=float, help="share of the GPU's peak that training reaches with all layers; if left out, estimated"
    )
    parser.add_argument("--price-per-gpu-hour", type=float)
    parser.add_argument(
        "--link-gbps",
        type=float,
        metavar="RATE",
        help="of a node to others, one direction, in Gbit/s: how long steps will take",
    )
    parser.add_argument(
        "--intra-node-gbps",
        type=float,
        metavar="RATE",
        help="of a GPU to others of its node; if left out, as its data sheet says",
    )
    parser.add_argument(
        "--scale-to", type=int, metavar="GPUS", help="with --link-gbps: the speed-up on more and more GPUs, up to so many"
    )
    parser.add_argument(
        "--target-speedup",
        type=float,
        metavar="FACTOR",
        help="propose path lengths for so many times fewer layer FLOPs, as 1.33",
    )
    parser.add_argument("--suggest", action="store_true", help="rank the layouts that can run there")
    quiet_argument(parser)
    train_arguments(parser.add_argument_group("accepted, so that the words for train can be checked"))


def run(args: argparse.Namespace, rest: list[str]) -> int:
    if explained(args):
        return 0
    require_recipe(args)
    _require_sensible(args)
    pairs, _ = with_decay(args, option_pairs(rest, OPTIONS))
    gpus = None if args.nodes is None else args.nodes * args.gpus_per_node
    run = parse_run(args.recipe, pairs, args.ds_config, gpus)
    problem = _problem_of(run)
    if problem is not None and not args.suggest:
        raise problem
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.plan.cost import Cluster
    from pretrain.plan.link import Links
    from pretrain.plan.show import print_plan, print_suggestions

    cluster = None
    if args.nodes is not None:
        cluster = Cluster(args.nodes, args.gpus_per_node, args.gpu, args.mfu, args.price_per_gpu_hour)
    links = None
    if args.link_gbps is not None:
        links = Links(args.link_gbps, args.intra_node_gbps or GPUS[args.gpu].link_gbps)
    if problem is None:
        print_plan(run, cluster, args.suggest, args.target_speedup, links, args.scale_to)
        return 0
    assert cluster is not None, "--suggest needs a cluster"
    print(f"this layout cannot run: {problem}\n")
    return 0 if print_suggestions(run, cluster) else 2


def _problem_of(run: Run) -> UserError | None:
    """Return what keeps a run from running as it is; another layout may do."""
    try:
        check(run)
        return None
    except UserError as error:
        return error


def _require_sensible(args: argparse.Namespace) -> None:
    """Refuse facts about a cluster that cannot be.

    Raises:
        UserError: the first one.
    """
    if (args.nodes is None) != (args.gpus_per_node is None):
        raise UserError(f"{COMMAND_LINE}: --nodes and --gpus-per-node go together")
    if args.nodes is None and (args.price_per_gpu_hour is not None or args.gpu != DEFAULT_GPU or args.mfu is not None):
        raise UserError(f"{COMMAND_LINE}: --gpu, --mfu and --price-per-gpu-hour need --nodes and --gpus-per-node")
    for name, value, needed in (
        ("link-gbps", args.link_gbps, "nodes"),
        ("intra-node-gbps", args.intra_node_gbps, "link-gbps"),
        ("scale-to", args.scale_to, "link-gbps"),
    ):
        if value is not None and getattr(args, needed.replace("-", "_")) is None:
            raise UserError(f"{COMMAND_LINE}: --{name} needs --{needed}")
        if value is not None and not 1e-3 <= value < math.inf:
            raise UserError(f"{COMMAND_LINE}: --{name} {value:g} must be a number of at least 0.001")
    if args.scale_to is not None and args.scale_to < args.gpus_per_node:
        raise UserError(f"{COMMAND_LINE}: --scale-to {args.scale_to} is less than a node of {args.gpus_per_node} GPUs")
    for name, value, least in (
        ("nodes", args.nodes, 1),
        ("gpus-per-node", args.gpus_per_node, 1),
        ("price-per-gpu-hour", args.price_per_gpu_hour, 0),
    ):
        if value is not None and not least <= value < math.inf:
            raise UserError(f"{COMMAND_LINE}: --{name} {value:g} must be at least {least}")
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise UserError(f"{COMMAND_LINE}: --mfu {args.mfu:g} must be above 0 and at most 1")
    if args.gpu not in GPUS:
        raise UserError(f"{COMMAND_LINE}: --gpu {args.gpu}: known are {', '.join(GPUS)}")
    if args.suggest and args.nodes is None:
        raise UserError(f"{COMMAND_LINE}: --suggest needs --nodes and --gpus-per-node")
