# shellcheck shell=bash
# What the scripts of this folder share. They source it, having set RECIPE, PRETRAIN_HOME, MOST_FAILURES and perhaps PYTHON and LAUNCH.

GRACE=600         # seconds, more than any site gives a preempted job
ENDED_SECONDS=180 # that srun may take to end when a task has reported its end
LOCK_SECONDS=120  # for which a job that was queued again waits for its own earlier start to let go of the run directory
# What scontrol calls this job: of an array this task alone.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-${SLURM_JOB_ID:-}}
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

# --recipe and --run-dir out of the words of a user, the rest into OPTIONS; %a in a word is the number of an array's task, as in sbatch's --output.
read_words() {
  [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
  OPTIONS=()
  RUN_DIR=""
  while (($#)); do
    case $1 in
      --recipe | --run-dir)
        (($# > 1)) || fail "option $1 needs a value"
        if [[ $1 == --recipe ]]; then RECIPE=$2; else RUN_DIR=$2; fi
        shift
        ;;
      --nodes | --nodes=* | --gpus-per-node | --gpus-per-node=*) fail "${1%%=*} is an option of sbatch: sbatch ${1%%=*} N SCRIPT ..., or the #SBATCH line of the script" ;;
      --suggest | --gpu | --gpu=* | --mfu | --mfu=* | --price-per-gpu-hour | --price-per-gpu-hour=* | --target-speedup | --target-speedup=*)
        fail "${1%%=*} is an option of \`python -m pretrain plan\`"
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
  echo "$(date -u +%FT%TZ)  job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $*" >>"$RUN_DIR/job.log" || true
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
  SIGNALS=() STEP=""
  trap 'SIGNALS+=(--signal USR1); tell_tasks USR1' USR1
  trap 'SIGNALS+=(--signal TERM); tell_tasks TERM' TERM
  RUN_DIR=${RUN_DIR:-runs/$(basename "$RECIPE" .yaml)-$SLURM_JOB_ID}
  local tasks_per_node=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES} / SLURM_JOB_NUM_NODES))} code_copy
  mkdir -p "$RUN_DIR"
  RUN_DIR=$(cd "$RUN_DIR" && pwd)
  code_copy=$RUN_DIR/code
  wait_for_lock
  if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ -d $code_copy ]]; then # as it was submitted, whatever has been edited since
    if [[ $RUN_DIR/recipe.yaml -nt $code_copy && -f $RUN_DIR/ds_config.json ]]; then # of this submission, not of one before
      RECIPE=$RUN_DIR/recipe.yaml
      without_option --ds-config
      OPTIONS+=(--ds-config "$RUN_DIR/ds_config.json")
    fi
  else
    copy_code "$code_copy"
  fi
  local plan=0 start=0
  python_of "$code_copy" -m pretrain plan "$RECIPE" --nodes "$SLURM_JOB_NUM_NODES" --gpus-per-node "$tasks_per_node" \
    ${OPTIONS[@]+"${OPTIONS[@]}"} >"$RUN_DIR/plan.txt" 2>&1 || plan=$?
  if ((plan == 2)); then # it would come back on every start
    cat "$RUN_DIR/plan.txt" >&2
    log "not started: $(grep -m 1 -E '^error' "$RUN_DIR/plan.txt")"
    exit "$plan"
  fi
  python_of "$code_copy" -m pretrain job start "$RUN_DIR" --most-failures "$MOST_FAILURES" || start=$?
  ((start == 0)) || exit_as "$start"
  train "$code_copy"
}

# Another job in the same run directory is left alone; an earlier start of this one may take a while to be gone.
wait_for_lock() {
  local waiting=0
  while [[ -e $RUN_DIR/.lock ]] && ! flock --nonblock "$RUN_DIR/.lock" true; do
    ((${SLURM_RESTART_COUNT:-0} > 0)) || fail "$RUN_DIR: another process trains in it; wait for it or choose another with --run-dir"
    ((waiting < LOCK_SECONDS)) || break # training finds out whether it is still held
    sleep 5
    waiting=$((waiting + 5))
  done
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
  local name
  while read -r name; do
    [[ -z $name || $name == "#"* ]] || cp -r "$PRETRAIN_HOME/$name" "$1.part/"
  done <"$PRETRAIN_HOME/slurm/code_files.txt"
  find "$1.part" -name __pycache__ -prune -exec rm -rf {} +
  cp "$PRETRAIN_HOME/COMMIT" "$1.part/" 2>/dev/null || # of a copy, as a study's
    git -C "$PRETRAIN_HOME" describe --always --dirty --abbrev=40 >"$1.part/COMMIT" 2>/dev/null || rm -f "$1.part/COMMIT"
  mv "$1.part" "$1"
}

train() {
  local code=$1 status=0 told=""
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT # of whoever submitted; srun's tasks have their own
  export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-20000} # the watchdog writes what they say
  if ((${#SIGNALS[@]} == 0)); then
    # Until Python takes USR1 it would end a task; tell_tasks sends it again.
    PYTHONPATH=$code "${SRUN[@]}" --job-name="train-$SLURM_JOB_ID" sh -c 'trap "" USR1; exec "$@"' sh \
      ${LAUNCH[@]+"${LAUNCH[@]}"} "$PYTHON" -P -m pretrain train "$RECIPE" --run-dir "$RUN_DIR" ${OPTIONS[@]+"${OPTIONS[@]}"} &
    STEP=$!
    while kill -0 "$STEP" 2>/dev/null; do # a signal ends `wait`, not the step
      sleep 1 &
      wait $! || true
      if [[ -z $told ]]; then
        ! reported_its_end || told=$SECONDS
      elif ((SECONDS - told > ENDED_SECONDS)); then
        give_up_on_step
      fi
    done
    wait "$STEP" || status=$?
  fi
  finish "$code" "$status"
}

# Has a task of this start reported why it ends?
reported_its_end() {
  grep -q "\"job\": \"$SLURM_JOB_ID\", \"restart\": ${SLURM_RESTART_COUNT:-0}, \"kind\": \"\(finished\|ended\|saved\|config\|stopped\|crash\|hung\|node\)\"" "$RUN_DIR/events.jsonl" 2>/dev/null
}

# srun waits for ever for a node whose slurmstepd has died.
give_up_on_step() {
  log "srun has not ended $ENDED_SECONDS s after a task has; it is killed"
  signal_step KILL
  sleep 10
  kill -KILL "$STEP" 2>/dev/null || true
}

signal_step() {
  local step
  step=$(squeue --steps --noheader --jobs "$SLURM_JOB_ID" --format '%i %j' 2>/dev/null | sed -n "s/ train-$SLURM_JOB_ID\$//p") || true
  [[ -z $step ]] || scancel --signal="$1" "$step" 2>/dev/null || true
}

# A signal for the tasks, again and again: the first may come before they can take it. srun itself would kill them on a TERM.
tell_tasks() {
  [[ -n $STEP ]] || return 0
  (
    trap - USR1 TERM
    times=0
    while kill -0 "$STEP" 2>/dev/null; do
      signal_step "$1"
      times=$((times + 1))
      sleep $((times < 10 ? 2 : 15))
    done
  ) &
}

# Only steps are signalled at a preemption; this script is not.
preempted() {
  scontrol show job "$JOB" | grep -q 'PreemptTime=[0-9]'
}

# One word of what scontrol says of this job.
job_fact() {
  scontrol show job -o "$JOB" | sed -nE "s/.* $1=([^ ]*) .*/\1/p"
}

# As `job start` and `job end` say; see EXIT_CODES in pretrain/job/log.py.
exit_as() {
  case $1 in
    0) exit 0 ;;
    76) exit 1 ;;
    77) exit 2 ;;
    78) exit 143 ;;
    *) exit "$1" ;;
  esac
}

# Queue the job again, or end it, as the policy says.
finish() {
  trap '' USR1 TERM # all is said; SLURM ends this script when the job goes back to the queue
  local code=$1 status=$2 verdict=0 excluded others
  others=$(job_fact Restarts || true)
  [[ -z $others || $others == "${SLURM_RESTART_COUNT:-0}" ]] || exit 0 # SLURM has queued the job again while this script was out of its sight
  python_of "$code" -m pretrain job end "$RUN_DIR" --code "$status" --most-failures "$MOST_FAILURES" ${SIGNALS[@]+"${SIGNALS[@]}"} || verdict=$?
  if preempted; then # a script that ends within the grace of a preemption would be taken for one that has failed: SLURM is to kill it
    sleep "$GRACE" &
    wait $!
  fi
  case $verdict in
    75) ;; # EX_TEMPFAIL: try again
    0 | 76 | 77 | 78) exit_as "$verdict" ;;
    *) # it could not decide: its own code is gone, or Python is
      ((${SLURM_RESTART_COUNT:-0} + 1 < MOST_FAILURES)) || fail "$RUN_DIR: how this start ended is unknown; not queued again after ${SLURM_RESTART_COUNT:-0} restarts"
      ;;
  esac
  if ! scontrol requeue "$JOB"; then # --no-requeue, salloc, a site that forbids it
    log "SLURM does not queue it again; the same command resumes"
    exit 1
  fi
  excluded=$(cat "$RUN_DIR/bad_nodes" 2>/dev/null || true)
  others=$(job_fact ExcNodeList || true)
  [[ -z $others || $others == "(null)" ]] || excluded=$excluded${excluded:+,}$others
  [[ -z $excluded ]] || scontrol update "JobId=$JOB" "ExcNodeList=$excluded"
  exit 75
}
