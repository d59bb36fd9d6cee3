#!/usr/bin/env bash
# The whole table for one GPU, with random weights of the real sizes and a voice of 9 s, in under 9 minutes:
#
#     bash benchmarks/gpu.sh FOLDER [the launcher's flags] [-- vLLM's flags]
#
# JSON, logs and table.md go to FOLDER. A part that fails is named and the others go on; a part for which too little
# time is left is left out. That holds once vLLM's and Triton's caches are warm: let it run once before.
# VLLM_USE_FLASHINFER_SAMPLER=0 stands because FlashInfer compiles its sampler at the first start, for minutes; whoever
# wants it sets it to 1 after one start of the product for that alone.
#
# From the environment: PYTHON (python3), PORT (8000), SIZE (full; tiny shows on a CPU that it runs), LISTENERS (64 128
# 192; each hears its reply out before it asks again), REQUESTS (64; under way without a pause), SECONDS_IN_ALL (530).
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:?usage: gpu.sh FOLDER [the launcher\'s flags] [-- vLLM\'s flags]}
shift
mkdir -p "$out" && out=$(cd "$out" && pwd)
python=${PYTHON:-python3} port=${PORT:-8000} size=${SIZE:-full} listeners=${LISTENERS:-64 128 192} requests=${REQUESTS:-64}
seconds_in_all=${SECONDS_IN_ALL:-530}
url=http://127.0.0.1:$port
export VLLM_NO_USAGE_STATS=1 VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0} PYTHONUNBUFFERED=1
rm -f "$out"/*.json # of an earlier run: a part that fails now must not show its numbers
failed=()
SECONDS=0

part() { # NAME SECONDS_AT_MOST COMMAND...: its output to NAME.log; told apart from the others when it fails
    local name=$1 most=$2 began=$SECONDS left=$((seconds_in_all - SECONDS))
    shift 2
    if ((left < 15)); then
        echo "left out: $name, $left s are left"
        failed+=("$name (left out)")
        return 1
    fi
    if timeout -k 10 $((most < left ? most : left)) "$@" >"$out/$name.log" 2>&1; then
        echo "done: $name, $((SECONDS - began)) s"
    else
        echo "FAILED: $name, exit status $?, $((SECONDS - began)) s; the end of $out/$name.log:"
        tail -n 12 "$out/$name.log"
        failed+=("$name")
        return 1
    fi
}

load() { # NAME FLAGS...: and what the server counted until then
    local name=$1
    shift
    part "$name" 100 "$python" "$here/load.py" --url "$url" --max-tokens 300-500 --json "$out/$name.json" "$@"
    curl -sf --max-time 5 "$url/metrics" >"$out/$name-metrics.txt"
}

write_checkpoint() {
    "$python" -m step_audio_vllm.synthetic "$out/checkpoint" --size "$size" &&
        "$python" -m sidecar.token2wav.synthetic "$out/checkpoint" --size "$size" &&
        "$python" -c 'import pathlib, sys; from sidecar.token2wav.synthetic_voice import vowel_recording
pathlib.Path(sys.argv[1]).write_bytes(vowel_recording(9.04))' "$out/voice.wav"
}

product=
start_product() {
    local batch=() began=$SECONDS before=() after=()
    [[ " $* " == *" --max-batch-size"* ]] || batch=(--max-batch-size 192)
    # ours stand before a `--`, and what follows it goes to vLLM
    while (($#)) && [[ $1 != -- ]]; do before+=("$1"); shift; done
    after=("${@:2}")
    "$python" -m vox_serve.launch --model "$out/checkpoint" --port "$port" --voice "$out/voice.wav" "${batch[@]}" \
        "${before[@]}" -- --load-format dummy "${after[@]}" >"$out/product.log" 2>&1 &
    product=$!
    until curl -sf --max-time 5 "$url/ready" >/dev/null; do
        if ! kill -0 "$product" 2>/dev/null || ((SECONDS > began + 300 || SECONDS > seconds_in_all - 30)); then
            echo "FAILED: the product is not ready after $((SECONDS - began)) s; the end of $out/product.log:"
            tail -n 25 "$out/product.log"
            failed+=(product)
            return 1
        fi
        sleep 0.5
    done
    echo "done: the product is ready, $((SECONDS - began)) s"
    nvidia-smi --query-gpu=memory.used --format=csv,noheader >"$out/memory-used.txt" 2>/dev/null || true
}

stop_product() {
    [[ -z $product ]] || { kill "$product" 2>/dev/null && wait "$product"; }
    product=
}
trap stop_product EXIT

cd "$here/.." || exit
export PYTHONPATH=$PWD:$PWD/launch${PYTHONPATH:+:$PYTHONPATH}
export -f write_checkpoint && export python out size
[[ -f $out/voice.wav ]] || part checkpoint 120 bash -c write_checkpoint || exit 1
part token2wav 100 "$python" "$here/token2wav.py" --checkpoint "$out/checkpoint" --batch 1 32 --json "$out/token2wav.json"
if start_product "$@"; then
    load one --listeners 1 --requests 8 --warm-up 2
    for count in $listeners; do
        # begun over about as long as a reply lasts
        load "listeners-$count" --listeners "$count" --play-out --stagger 12 --requests $((2 * count)) --seconds 12
    done
    for count in $requests; do
        load "requests-$count" --listeners "$count" --stagger 4 --requests $((2 * count)) --seconds 30
    done
    stop_product
fi
"$python" "$here/gpu_table.py" "$out" | tee "$out/table.md"
echo "$SECONDS s in all; failed: ${failed[*]:-nothing}"
((${#failed[@]} == 0))
