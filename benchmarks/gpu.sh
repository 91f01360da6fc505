#!/usr/bin/env bash
# All that is measured on a GPU, in parts of at most ten minutes that can be started again, without a network.
#
#     benchmarks/gpu.sh                       # all parts, in this order: tests inference training few_shot compiled speed
#     benchmarks/gpu.sh tests few_shot        # some of them
#     benchmarks/gpu.sh --dry-run             # all on the CPU, on tiny images with glip-nano: does every command work?
#
# Results go to $OUT (default: benchmarks/results/gpu): measurements.jsonl, table.md, and a log of each part. What
# measurements.jsonl holds is not measured again. Variables: TRUNKS, BATCHES, PRECISIONS, SIZE, DEVICE, REPEATS, SECONDS_MAX.
# Needs the dependencies of the project, pytest and hypothesis; weights are random, sets rendered.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

PARTS=(tests inference training few_shot compiled speed)
OUT=${OUT:-benchmarks/results/gpu}
if [[ "${1:-}" == --dry-run ]]; then
    shift
    DEVICE=cpu TRUNKS=${TRUNKS:-glip-nano} BATCHES=${BATCHES:-1 2} PRECISIONS=${PRECISIONS:-float32}
    SIZE=${SIZE:-64 96} REPEATS=1 STEPS=2
    # Compilation for a CPU takes minutes; threads gain nothing on tiny images.
    export TORCH_COMPILE_DISABLE=1 OMP_NUM_THREADS=1
    OUT=${OUT}/dry-run
fi
DEVICE=${DEVICE:-cuda} TRUNKS=${TRUNKS:-glip-t glip-l} BATCHES=${BATCHES:-1 4 16}
PRECISIONS=${PRECISIONS:-bfloat16 float32} SIZE=${SIZE:-800 1333} REPEATS=${REPEATS:-10} STEPS=${STEPS:-20}
SECONDS_MAX=${SECONDS_MAX:-570}
mkdir -p "$OUT"
failed=0

# Run a command into the log of its part, and say how it ended.
run() {
    local part=$1 started=$SECONDS
    shift
    echo "\$ $*" | tee -a "$OUT/$part.log"
    timeout "$SECONDS_MAX" "$@" >>"$OUT/$part.log" 2>&1
    local code=$?
    echo "$part: exit code $code after $((SECONDS - started)) s"
    ((code == 0)) || { failed=1; tail -n 5 "$OUT/$part.log"; }
}

# Measure tasks of all trunks; further arguments are those of benchmarks/gpu.py.
measure() {
    local part=$1 trunk
    shift
    for trunk in $TRUNKS; do
        # shellcheck disable=SC2086  # lists
        run "$part" python -m benchmarks.gpu --device "$DEVICE" --trunk "$trunk" --batch $BATCHES --size $SIZE \
            --repeats "$REPEATS" --out "$OUT/measurements.jsonl" "$@"
    done
}

tests() {  # without the project's options for pytest, which ask for a plugin; on a CPU each test is skipped
    run tests python -m pytest -o addopts= -q -m gpu tests/test_gpu.py
}

# shellcheck disable=SC2086  # lists
inference() { measure inference --tasks inference --precision $PRECISIONS; }

# shellcheck disable=SC2086  # lists
training() { measure training --tasks prompt linear_probe lora full --precision $PRECISIONS; }

compiled() { BATCHES=${BATCHES%% *} measure compiled --compile --tasks inference prompt --precision "${PRECISIONS%% *}"; }

few_shot() {
    local trunk runs
    runs=$(mktemp -d)
    printf 'trunks = ["glip-nano"]\ndatasets = ["glyphs13/ChessHollow"]\nmethods = ["prompt", "lora", "full"]\nshots = [0, 5]\nseeds = [3]\n[fit]\nmax_steps = %s\nvalidate_every = %s\n' \
        "$STEPS" "$STEPS" >"$runs/plan.toml"
    run few_shot python -m glip_adapt bench "$runs/plan.toml" --out "$runs/results" --device "$DEVICE"
    run few_shot python -m glip_adapt report "$runs/results"
    for trunk in $TRUNKS; do
        run few_shot python -m benchmarks.gpu --few-shot --device "$DEVICE" --trunk "$trunk" --steps "$STEPS" \
            --precision "${PRECISIONS%% *}"
    done
    rm -r "$runs"
}

# Ours against the arithmetic of the public code; five tasks, each side in processes of its own for its memory.
speed() {
    local trunk
    for trunk in $TRUNKS; do
        # shellcheck disable=SC2086  # lists
        run speed python benchmarks/speed.py --device "$DEVICE" --trunk "$trunk" --size $SIZE --repeats "$REPEATS" \
            --precision "${PRECISIONS%% *}"
    done
}

chosen=("$@")
((${#chosen[@]})) || chosen=("${PARTS[@]}")
for part in "${chosen[@]}"; do
    [[ " ${PARTS[*]} " == *" $part "* ]] || { echo "No part '$part'. Parts: ${PARTS[*]}" >&2; exit 2; }
done
for part in "${chosen[@]}"; do
    "$part"
done
[[ -f $OUT/measurements.jsonl ]] && python -m benchmarks.gpu --table "$OUT/measurements.jsonl" >"$OUT/table.md"
exit $failed
