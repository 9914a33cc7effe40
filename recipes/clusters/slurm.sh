#!/bin/bash
# harpe extend on two nodes of eight GPUs: sbatch recipes/clusters/slurm.sh. The run directory lies on a file system that all nodes share.
#SBATCH --job-name=harpe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

MODEL=${MODEL:-meta-llama/Llama-2-7b-hf}
DATA=${DATA:-data/slimpajama-128k}   # what `harpe prepare` made, before the job
OUT=${OUT:-runs/llama2-7b-128k}
RESUME=()
if [ -f "$OUT/recipe.yaml" ]; then   # a job that was requeued goes on
  RESUME=(--resume)
fi

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 harpe extend "$MODEL" \
  --length 131072 --data "$DATA" --out "$OUT" --batch-tokens 2097152 \
  --sequence-parallel 8 --replicas "$SLURM_JOB_NUM_NODES" "${RESUME[@]}"
