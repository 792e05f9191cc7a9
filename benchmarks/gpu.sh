#!/usr/bin/env bash
# What only a GPU can tell, in an order that can be cut anywhere: each part
# prints and writes what it has at once, and can be left out.
#
#   tests   the tests that need a GPU, those of the operators, the demo; 90 s
#   steps   times, memory and kernels of training steps; 120 s
#   train   CIFAR-10 x0.35, static, SB, SE in all layers, three seeds side by
#           side; the epochs are those that fit into --minutes at the measured
#           speed. Called again with its --out, here or elsewhere, it goes on.
#
# usage: benchmarks/gpu.sh [--parts 'tests steps train'] [--minutes 8]
#            [--epochs N] [--out work_dirs/gpu] [--data-root data/cifar10]
#            [--cells 'ID ...'] [--jobs 9] [--device cuda] [--options '...']
# --options are further ones of benchmarks/run.py; SB_MM_FUSED_GATE=1 trains
# with fused gates.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export PYTORCH_NVML_BASED_CUDA_CHECK=1 # else benchmarks/run.py could not fork
export CUDA_MPS_PIPE_DIRECTORY=/tmp/sb_mm_mps CUDA_MPS_LOG_DIRECTORY=/tmp/sb_mm_mps

parts='tests steps train' minutes=8 epochs='' out=work_dirs/gpu
data_root=data/cifar10 jobs=9 device=cuda options=''
cells='t6-x0.35-static t6-x0.35-sb t5-x0.35-se-expand-depthwise-project'
cases='cifar_step detector_step training_loop cifar_channels_last
    detector_bfloat16 compiled_kernels'
while [ $# -gt 0 ]; do
    case $1 in
    --parts | --minutes | --epochs | --out | --data-root | --cells | --jobs | \
        --device | --options) declare "$(tr - _ <<<"${1#--}")=${2?}" && shift 2 ;;
    *) sed -n '2,/^set/{/^#/p}' "$0" >&2 && exit 2 ;;
    esac
done
mkdir -p "$out"
measure() { python -W ignore benchmarks/run.py --device "$device" $options "$@"; }

part_tests() {
    python -W ignore - <<'EOF' || return
import mmcv.ops, mmdet.models, mmpretrain.models, torch, sb_mm.models
found = torch.cuda.is_available()
print(torch.__version__, torch.cuda.get_device_name() if found else 'no GPU')
EOF
    timeout 80 python -m pytest -q -p no:cacheprovider -n 4 -m gpu tests >"$out/marked.log" 2>&1 &
    timeout 80 python -m pytest -q -p no:cacheprovider tests/test_ops.py >"$out/ops.log" 2>&1 &
    timeout 80 python tools/demo.py --epochs 2 --min-map 0 --out "$out/demo" >"$out/demo.log" 2>&1 &
    wait
    tail -n 15 "$out"/{marked,ops,demo}.log
}

part_steps() {
    if [ "$device" = cuda ]; then # the most telling ones first
        cases="cifar_step cifar_graphs detector_step detector_graphs
            training_loop cifar_channels_last detector_bfloat16
            cifar_compiled detector_compiled"
    fi
    timeout 120 bash -c "$(declare -f measure); device=$device options='$options' measure \
        --limit 25 --only ${cases//$'\n'/ } --out '$out/steps.json'"
}

