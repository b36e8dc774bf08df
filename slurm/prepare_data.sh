#!/usr/bin/env bash
# Tokenization by many processes: the same bytes as one process writes, and a restart resumes from finished blocks.
#
#   sbatch slurm/prepare_data.sh --input 'text/*.jsonl.gz' --tokenizer data/tokenizer --out data/train
#
#SBATCH --job-name=prepare-data
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=16           # one reads, the others encode; one reader feeds 20 to 40
#SBATCH --cpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# ---- what differs between sites ------------------------------------------------------------------------------------
##SBATCH --account=NAME
##SBATCH --partition=NAME
# PRETRAIN_HOME=/path/to/this/repository         # found by itself, unless the script was copied elsewhere
# PYTHON=/path/to/python                         # .venv/bin/python of the repository, unless given
# LAUNCH=(apptainer exec image.sif)              # put before python: a container
MPI=pmi2                               # how SLURM and MPI meet: pmi2 for requirements/run.txt's mpich; `srun --mpi=list`
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
exec srun --export=ALL --mpi="$MPI" --kill-on-bad-exit=1 ${LAUNCH[@]+"${LAUNCH[@]}"} "$PYTHON" -P -m tokenizer encode "$@"
