#!/bin/bash
# A study on nodes of SLURM without Ray: each training takes all cards of all nodes, one after the other. Submit it from a
# folder that all nodes see:
#
#   sbatch slurm_torchrun.sh STUDY.yaml [more of `lingraft run`, such as --sharded]
#
# Change the lines of #SBATCH as your cluster wants them, and how lingraft is activated.
#SBATCH --job-name=lingraft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
# Three minutes before the end of the time, this script alone gets SIGTERM (B). Give as long as a step and a checkpoint of your
# model take, and torchrun's --shutdown-timeout below a little less.
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ -z ${SLURM_JOB_ID:-} || $# -eq 0 ]]; then
  echo "usage: sbatch slurm_torchrun.sh STUDY.yaml [more of \`lingraft run\`]" >&2
  exit 2
fi
# shellcheck disable=SC1091
source "${LINGRAFT_VENV:-.venv}/bin/activate"
export TORCH_CPP_LOG_LEVEL=ERROR # else torchrun warns, with a stack, of agents that end one after the other

# Every process of the step gets the signal: lingraft and its workers finish the step of training, save it together and end.
stopped="" interrupted="" step=""
trap 'stopped=1 interrupted=1; if [[ -n $step ]]; then scancel --signal=TERM "$SLURM_JOB_ID" || true; fi' TERM

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} # where this script runs, too
# The head's address as the last node knows it: on the head its own name may mean 127.0.1.1.
ip=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[-1]}" getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }')
port=$((20000 + SLURM_JOB_ID % 10000))

code=143
if [[ -z $stopped ]]; then
  srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
    torchrun --nnodes="${#nodes[@]}" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --shutdown-timeout=150 \
    --rdzv-backend=c10d --rdzv-endpoint="${ip:?$head has no address on ${nodes[-1]}}:$port" --rdzv-id="$SLURM_JOB_ID" \
    -m lingraft run "$@" &
  step=$!
  interrupted=1
  while [[ -n $interrupted ]]; do
    interrupted=""
    code=0
    wait "$step" || code=$?
  done
fi

# Not where SLURM ends the job itself (cancelled, preempted): it knows whether it comes back.
if [[ -n $stopped && $code -ne 0 && $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
  echo "slurm_torchrun.sh: job $SLURM_JOB_ID goes back into the queue, and goes on from what is saved"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
