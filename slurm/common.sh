# shellcheck shell=bash
# What the scripts of this folder share. They source it, having set RECIPE, PRETRAIN_HOME, MOST_FAILURES and perhaps PYTHON and LAUNCH.

GRACE=600 # seconds, more than any site gives a preempted job
PYTHON=${PYTHON:-$PRETRAIN_HOME/.venv/bin/python}
LAUNCH=("${LAUNCH[@]}")
# --export=ALL: the tasks get this environment, however the job was submitted. One task a GPU; binding is SLURM's.
SRUN=(srun --export=ALL --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --mpi=none)

# Python from the given copy of the code, whatever folder we are in: -P keeps that folder out of its path.
python_of() {
  local code=$1
  shift
  PYTHONPATH=$code ${LAUNCH[@]+"${LAUNCH[@]}"} "$PYTHON" -P "$@"
}

# --recipe and --run-dir out of the words of a user, the rest into OPTIONS.
read_words() {
  OPTIONS=()
  RUN_DIR=""
  while (($#)); do
    case $1 in
      --recipe | --run-dir)
        (($# > 1)) || fail "option $1 needs a value"
        if [[ $1 == --recipe ]]; then RECIPE=$2; else RUN_DIR=$2; fi
        shift
        ;;
      --recipe=*) RECIPE=${1#*=} ;;
      --run-dir=*) RUN_DIR=${1#*=} ;;
      *) OPTIONS+=("$1") ;;
    esac
    shift
  done
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# A line of the run's story, as `python -m pretrain job` writes them.
log() {
  echo "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $*"
  echo "$(date -u +%FT%TZ)  job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $*" >>"$RUN_DIR/job.log"
}

# The value of an #SBATCH line of the script that was started.
sbatch_value() {
  sed -nE "s/^#SBATCH --$1=([^ ]+).*/\1/p" "$SCRIPT" | head -n 1
}

pretrain() {
  read_words "$@"
  [[ -x $PYTHON || -n ${LAUNCH[*]:-} ]] || fail "$PYTHON is not there; run \`make .venv/installed\` in $PRETRAIN_HOME, or set PYTHON at the top of the script"
  if [[ -z ${SLURM_JOB_ID:-} ]]; then
    submit "$@"
  else
    run_job
  fi
}

# By hand: everything that a laptop can check, then into the queue.
submit() {
  SCRIPT=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
  local nodes tasks
  nodes=$(sbatch_value nodes)
  tasks=$(sbatch_value ntasks-per-node)
  python_of "$PRETRAIN_HOME" -m pretrain plan "$RECIPE" --nodes "$nodes" --gpus-per-node "$tasks" ${OPTIONS[@]+"${OPTIONS[@]}"} || exit $?
  command -v sbatch >/dev/null || fail "everything holds, and there is no sbatch here to submit it with"
  exec sbatch "$SCRIPT" "$@"
}

run_job() {
  RUN_DIR=${RUN_DIR:-runs/$(basename "$RECIPE" .yaml)-$SLURM_JOB_ID}
  local tasks_per_node=${SLURM_NTASKS_PER_NODE:-$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))} code_copy
  mkdir -p "$RUN_DIR"
  RUN_DIR=$(cd "$RUN_DIR" && pwd)
  code_copy=$RUN_DIR/code
  if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ -d $code_copy ]]; then # as it was submitted, whatever has been edited since
    if [[ -f $RUN_DIR/recipe.yaml && -f $RUN_DIR/ds_config.json ]]; then
      RECIPE=$RUN_DIR/recipe.yaml
      without_option --ds-config
      OPTIONS+=(--ds-config "$RUN_DIR/ds_config.json")
    fi
  else
    copy_code "$code_copy"
  fi
  local plan=0
  python_of "$code_copy" -m pretrain plan "$RECIPE" --nodes "$SLURM_JOB_NUM_NODES" --gpus-per-node "$tasks_per_node" \
    ${OPTIONS[@]+"${OPTIONS[@]}"} >"$RUN_DIR/plan.txt" || plan=$?
  if ((plan)); then # it would come back on every start
    log "not started, see the error above"
    exit "$plan"
  fi
  python_of "$code_copy" -m pretrain job start "$RUN_DIR"
  train "$code_copy"
}

without_option() {
  local kept=() word skip=""
  for word in ${OPTIONS[@]+"${OPTIONS[@]}"}; do
    if [[ -n $skip ]]; then skip=""; elif [[ $word == "$1" ]]; then skip=1; elif [[ $word != "$1="* ]]; then kept+=("$word"); fi
  done
  OPTIONS=(${kept[@]+"${kept[@]}"})
}

copy_code() {
  rm -rf "$1" "$1.part"
  mkdir -p "$1.part"
  (cd "$PRETRAIN_HOME" && cp -r pretrain tokenizer ds_configs slurm requirements.txt "$1.part/")
  find "$1.part" -name __pycache__ -prune -exec rm -rf {} +
  git -C "$PRETRAIN_HOME" describe --always --dirty --abbrev=40 >"$1.part/COMMIT" 2>/dev/null || rm -f "$1.part/COMMIT"
  mv "$1.part" "$1"
}

train() {
  local code=$1 status=0 step="" terminated=0
  export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-20000} TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
  export TORCH_NCCL_DEBUG_INFO_TEMP_FILE=${TORCH_NCCL_DEBUG_INFO_TEMP_FILE:-$RUN_DIR/nccl_trace_rank_}
  trap '[[ -n $step ]] && kill -USR1 "$step" 2>/dev/null' USR1
  trap 'terminated=1; [[ -n $step ]] && kill -TERM "$step" 2>/dev/null' TERM
  PYTHONPATH=$code "${SRUN[@]}" ${LAUNCH[@]+"${LAUNCH[@]}"} "$PYTHON" -P -m pretrain train "$RECIPE" --run-dir "$RUN_DIR" ${OPTIONS[@]+"${OPTIONS[@]}"} &
  step=$!
  while kill -0 "$step" 2>/dev/null; do # a signal ends `wait`, not the step
    status=0
    wait "$step" || status=$?
  done
  finish "$code" "$status" "$terminated"
}

# Steps alone are told of a preemption; this script is not.
preempted() {
  scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'
}

# Queue the job again, or end it, as the policy says.
finish() {
  local code=$1 status=$2 terminated=$3 verdict=0 excluded words=()
  ((terminated)) && words=(--terminated)
  python_of "$code" -m pretrain job end "$RUN_DIR" --code "$status" --most-failures "$MOST_FAILURES" ${words[@]+"${words[@]}"} || verdict=$?
  if ((terminated)) || preempted; then # a script that ends within the grace of a preemption would be taken for one that has failed: SLURM is to kill it
    trap '' TERM
    sleep "$GRACE" &
    wait $!
  fi
  if ((verdict != 75)); then # EX_TEMPFAIL: try again
    exit "$verdict"
  fi
  trap '' TERM # SLURM ends this script when the job goes back to the queue
  if ! scontrol requeue "$SLURM_JOB_ID"; then # --no-requeue, salloc, a site that forbids it
    log "SLURM does not queue it again; the same command goes on"
    exit 1
  fi
  excluded=$(cat "$RUN_DIR/bad_nodes" 2>/dev/null || true)
  [[ -z $excluded ]] || scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$excluded"
  exit 75
}
