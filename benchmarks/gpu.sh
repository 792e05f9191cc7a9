#!/usr/bin/env bash
# What only a GPU can tell, in an order that can be cut anywhere: each part
# prints and writes what it has at once.
#
#   tests     the tests that need a GPU, the operators', the demo; 90 s
#   steps     time, memory and kernels of training steps; 150 s
#   compiled  the same, compiled by inductor; 90 s, only if asked for
#   train     CIFAR-10 x0.35 static, SB and SE in all layers, three seeds side
#             by side, for the epochs that fit into the minutes at the speed
#             that "steps" measured; with the same --out it goes on
#
# usage: benchmarks/gpu.sh [--parts 'tests steps train'] [--minutes 8]
#     [--epochs N] [--jobs 9] [--cells 'ID ...'] [--out work_dirs/gpu]
#     [--data-root data/cifar10] [--device cuda] [--options '--rounds 9']
# The options are those of benchmarks/run.py. SB_MM_FUSED_GATE=1 trains with
# fused gates.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore OMP_NUM_THREADS=1
export CUDA_MPS_PIPE_DIRECTORY=/tmp/sb_mm_mps CUDA_MPS_LOG_DIRECTORY=/tmp/sb_mm_mps

parts='tests steps train' minutes=8 epochs='' jobs=9 out=work_dirs/gpu
cells='t6-x0.35-static t6-x0.35-sb t5-x0.35-se-expand-depthwise-project'
data_root=data/cifar10 device=cuda options='--rounds 9'
while [ $# -gt 0 ]; do
    case $1 in
    --parts | --minutes | --epochs | --jobs | --cells | --out | --data-root | \
        --device | --options) declare "$(tr - _ <<<"${1#--}")=${2?}"; shift 2 ;;
    *) sed -n '2,/^set/s/^#//p' "$0" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"

measure() { # seconds for all, seconds for a case, cases
    local end=$((SECONDS + $1)) left name
    for name in "${@:3}"; do
        left=$((end - SECONDS < $2 ? end - SECONDS : $2))
        ((left > 0)) || { echo "$name: not run, no time left"; continue; }
        # shellcheck disable=SC2086
        timeout "$left" python benchmarks/run.py --device "$device" \
            --out "$out/steps.jsonl" $options --only "$name" ||
            echo "$name: not finished, exit code $?"
    done
}

part_tests() {
    python - <<'EOF' || return
import mmcv.ops, mmdet.models, mmpretrain.models, torch, sb_mm.models
found = torch.cuda.is_available()
print(torch.__version__, torch.cuda.get_device_name() if found else 'no GPU')
EOF
    in_background marked python -m pytest -q -n 4 -m gpu tests
    in_background operators python -m pytest -q tests/test_ops.py
    # In this Python, without make env.
    in_background demo make -o env demo PY=python \
        ARGS='--cfg-options train_cfg.max_epochs=2'
    wait
    tail -n 12 "$out"/{marked,operators,demo}.log
}

in_background() { timeout 85 "${@:2}" >"$out/$1.log" 2>&1 & }

part_steps() { # the most telling ones first
    if [ "$device" = cpu ]; then
        measure 150 70 cifar_step detector_step training_loop
    else
        measure 150 45 cifar_step cifar_graphs detector_step detector_graphs \
            training_loop
    fi
}

part_compiled() { measure 90 60 cifar_compiled detector_compiled; }

fitting_epochs() { # what the loop or all jobs' kernels take of the minutes
    python - "$out/steps.jsonl" "$minutes" "$jobs" "$(wc -w <<<"$cells")" <<'EOF'
import json, math, os, sys
path, minutes, jobs, cells = sys.argv[1], *map(int, sys.argv[2:])
ours = 'SB fused' if os.environ.get('SB_MM_FUSED_GATE') == '1' else 'SB'
image = 0  # ms
for row in map(json.loads, open(path)):
    if (row['ours'], row['other']) == (ours, 'static'):
        if row['what'].startswith('training loop'):
            image = max(image, row['ours_median'])
        if row['what'].startswith('kernels of a training step for CIFAR-10'):
            if row['unit'] == 'ms':
                image = max(image, row['ours_median'] * jobs / 128)
assert image, f'{path} has no training loop: give --epochs'
# A start takes 45 s; an epoch trains on 50,000 images and tests on 10,000.
starts = math.ceil(3 * cells / jobs)
left = 60 * minutes / starts - 45
print(max(1, int(1e3 * left / (1.2 * 50_000 * image))))
EOF
}

part_train() {
    [ -n "$epochs" ] || epochs=$(cat "$out/epochs" 2>/dev/null || fitting_epochs) || return
    echo "$epochs" >"$out/epochs"
    if [ "$device" = cuda ] && command -v nvidia-cuda-mps-control >/dev/null; then
        mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" && nvidia-cuda-mps-control -d
        trap 'echo quit | nvidia-cuda-mps-control' EXIT
    fi
    # shellcheck disable=SC2086
    timeout -k 20 "$((60 * minutes))" python tools/paper.py train --cells $cells \
        --seeds 0 1 2 --epochs "$epochs" --jobs "$jobs" --channels-last \
        --data-root "$data_root" --results "$out/results" --out "$out/jobs"
    tail -n 1 "$out"/jobs/*/*/train.log
}

for part in $parts; do
    echo "== $part, $(date +%T)"
    "part_$part" 2>&1 | tee -a "$out/$part.txt"
done
echo "== end, $(date +%T)"
