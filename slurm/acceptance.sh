#!/usr/bin/env bash
# Does everything work on this cluster? Some twenty minutes: collectives, the same losses on every layout as in one process, a run that is killed and
# resumed, the time that skipped layers save, and on one of its GPUs what bench.gpu tries. Writes DIR/acceptance.json and a line for docs/tested_on.md; please send it.
#
#   sbatch slurm/acceptance.sh [--out DIR]
#
#SBATCH --job-name=acceptance
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8            # one task a GPU
#SBATCH --gpus-per-node=8              # remove on a cluster of CPUs
#SBATCH --cpus-per-task=8
#SBATCH --time=1:00:00
#SBATCH --no-requeue
#SBATCH --output=%x-%j.out

# ---- what differs between sites ------------------------------------------------------------------------------------
##SBATCH --account=NAME
##SBATCH --partition=NAME
# PRETRAIN_HOME=/path/to/this/repository         # found by itself, unless the script was copied elsewhere
# PYTHON=/path/to/python                         # .venv/bin/python of the repository, unless given
# LAUNCH=(apptainer exec --nv image.sif)         # put before python: a container that brings its own torch
# module load cuda                               # what the site asks for
# export NCCL_SOCKET_IFNAME=hsn0 GLOO_SOCKET_IFNAME=hsn0   # the interconnect, where NCCL or gloo does not find it
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
[[ -n ${SLURM_JOB_ID:-} ]] || exec sbatch "$0" "$@"
export PYTHONPATH=$PRETRAIN_HOME
exec "$PYTHON" -P -m bench.acceptance --out "acceptance-$SLURM_JOB_ID" "$@" -- "${SRUN[@]}" ${LAUNCH[@]+"${LAUNCH[@]}"} "$PYTHON" -P
