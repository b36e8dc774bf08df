#!/usr/bin/env bash
# UL2 pretraining as a SLURM job that survives time limits, preemption and dead nodes.
#
#   sbatch slurm/pretrain_ul2.sh                                                       as shipped
#   sbatch --nodes 8 slurm/pretrain_ul2.sh --recipe ul2_1.6b --run-dir DIR --steps 1000   any option of `python -m pretrain train`
#   slurm/pretrain_ul2.sh ...                                                          by hand: checks everything, then submits itself
#
#SBATCH --job-name=ul2
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8            # one task a GPU
#SBATCH --gpus-per-node=8              # remove on a cluster of CPUs
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300            # seconds before the limit in which to save and queue again
#SBATCH --requeue
#SBATCH --open-mode=append             # one log for all starts of a job
#SBATCH --output=%x-%j.out

# ---- what differs between sites ------------------------------------------------------------------------------------
##SBATCH --account=NAME
##SBATCH --partition=NAME
RECIPE=ul2_1.6b                        # unless --recipe says otherwise
# PRETRAIN_HOME=/path/to/this/repository         # found by itself, unless the script was copied elsewhere
# PYTHON=/path/to/python                         # .venv/bin/python of the repository, unless given
# LAUNCH=(apptainer exec --nv image.sif)         # put before python: a container that brings its own torch
# module load cuda                               # what the site asks for
# export NCCL_SOCKET_IFNAME=hsn0 GLOO_SOCKET_IFNAME=hsn0   # the interconnect, where NCCL or gloo does not find it
# export TMPDIR=/local/scratch/$USER             # fast disk of the node, for caches of compiled code
MOST_FAILURES=3                        # starts in a row without a new checkpoint, after which the job gives up
# --------------------------------------------------------------------------------------------------------------------

set -euo pipefail
if [[ -z ${PRETRAIN_HOME:-} ]]; then # two folders up; in a job SLURM runs a copy of this file, and knows where it came from
  script=${SLURM_JOB_ID:+$(scontrol show job "${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}" | sed -n '0,/Command=/s/^ *Command=//p')}
  script=${script%%.sh *}
  script=$(readlink -f "${SLURM_SUBMIT_DIR:-.}/${script%.sh}.sh" || readlink -f "${script%.sh}.sh" || true)
  [[ -f ${script%/*}/common.sh ]] || script=$(readlink -f "${BASH_SOURCE[0]}")
  PRETRAIN_HOME=$(dirname "$(dirname "$script")")
fi
if [[ ! -f $PRETRAIN_HOME/slurm/common.sh ]]; then
  echo "error: the repository is not at $PRETRAIN_HOME; set PRETRAIN_HOME at the top of this script" >&2
  exit 2
fi
# shellcheck source=slurm/common.sh
source "$PRETRAIN_HOME/slurm/common.sh"
pretrain "$@"
