#!/bin/bash
# A study on nodes of SLURM, its stages shared out by Ray. Submit it from a folder that all nodes see:
#
#   sbatch slurm_ray.sh STUDY.yaml [more of `lingraft run`]
#
# Change the lines of #SBATCH as your cluster wants them, and how lingraft is activated.
#SBATCH --job-name=lingraft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
# Two minutes before the end of the time, this script alone gets SIGTERM (B), not Ray's processes. Give as long as a step and a
# checkpoint of your model take.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# Where one node fails the job goes on: Ray makes its stages again on the others.
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ -z ${SLURM_JOB_ID:-} || $# -eq 0 ]]; then
  echo "usage: sbatch slurm_ray.sh STUDY.yaml [more of \`lingraft run\`]" >&2
  exit 2
fi
# shellcheck disable=SC1091
source "${LINGRAFT_VENV:-.venv}/bin/activate"
# Whoever reaches Ray's ports can run programs as you: the token of ~/.ray/auth_token keeps others out.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
ray get-auth-token --generate > /dev/null

stopped="" interrupted="" driver=""
trap 'stopped=1 interrupted=1; if [[ -n $driver ]]; then kill -TERM "$driver" 2> /dev/null || true; fi' TERM

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} # where this script runs
# The head's address as the last node knows it: on the head its own name may mean 127.0.1.1.
ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[-1]}" getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }')
port=$((20000 + SLURM_JOB_ID % 10000))
address=${ip:?$head has no address on ${nodes[-1]}}:$port

# Ray's own store of objects stays small: stages speak through the run folder.
node=(--num-cpus="$SLURM_CPUS_ON_NODE" --object-store-memory=500000000 --block)
step=(srun --overlap --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=0 --label)
ray_log=$SLURM_JOB_NAME-$SLURM_JOB_ID-ray.log
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --node-ip-address="$ip" --port="$port" --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${node[@]}" >> "$ray_log" 2>&1 &
steps=($!)
until ray status --address="$address" > /dev/null 2>&1; do
  kill -0 "${steps[0]}" 2> /dev/null || { echo "slurm_ray.sh: Ray did not start on $head, see $ray_log" >&2; exit 1; }
  if [[ -n $stopped ]]; then break; fi
  sleep 1
done
if ((${#nodes[@]} > 1)); then
  others=$(IFS=,; echo "${nodes[*]:1}")
  count=$((${#nodes[@]} - 1))
  "${step[@]}" --nodes="$count" --ntasks="$count" --nodelist="$others" ray start --address="$address" "${node[@]}" >> "$ray_log" 2>&1 &
  steps+=($!)
fi

# The study begins with the nodes that are there. At SIGTERM it saves first, and this script waits for it.
code=143
if [[ -z $stopped ]]; then
  lingraft run "$@" --ray "$address" &
  driver=$!
  interrupted=1
  while [[ -n $interrupted ]]; do
    interrupted=""
    code=0
    wait "$driver" || code=$?
  done
fi
kill "${steps[@]}" 2> /dev/null || true
wait "${steps[@]}" || true

# Not where SLURM ends the job itself (cancelled, preempted): it knows whether it comes back.
if [[ -n $stopped && $code -ne 0 && $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
  echo "slurm_ray.sh: job $SLURM_JOB_ID goes back into the queue, and goes on from what is saved"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
