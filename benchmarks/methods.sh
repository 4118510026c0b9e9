#!/usr/bin/env bash
# Every position and reading method at 1x to 16x of the window that pocket-reader was trained on (512 tokens).
# Resumable: run it again to go on. One thread: about an hour of one core for the two tasks.
set -euo pipefail
out=${1:-runs/methods}
factor='{max(1, length/window)}'
export OMP_NUM_THREADS=1
lengthwise compare --model pocket-reader --report "$out" --trials "${TRIALS:-8}" --depth 0.1,0.4,0.7,1 \
  --length "${LENGTHS:-512,1k,2k,4k,8k}" \
  --task needle:keys=8 --task pairs:keys=16 \
  --stack dense \
  --stack "linear:factor=$factor" \
  --stack "ntk:factor=$factor" \
  --stack "dynamic-ntk:length={max(length, window)}" \
  --stack "yarn:factor=$factor" \
  --stack "streaming-llm:window=508" \
  --stack "lm-infinite:sinks=10,window=502" \
  --stack "lm-infinite:sinks=10,window=502,top_k=5,top_k_layer=0" \
  --stack "self-extend:window=256,group={min(256, 2**ceil(log2(max(1, (length-256)/256))))}" \
  --stack "rerope:window=256" \
  --stack "sirllm:entropy=254,recent=254" \
  --stack "infllm:init=16,local=256,block=32,top=6,chunk=32,to=ram" \
  --stack "infllm:init=16,local=256,block=16,top=12,chunk=32,rule=max,to=ram" \
  --stack "xl3m:segment=128,overlap=32,zoom=0" \
  --stack "yarn:factor=$factor + int8:group=32" \
  --stack "yarn:factor=$factor + int4:group=32" \
  --stack power \
  --stack truncated \
  --stack abf \
  --stack "distributional:factor=$factor" \
  --stack "ntk:length={max(length, window)}" \
  --stack dual-chunk \
  --stack "yarn:factor=$factor + block-sparse" \
  --stack "yarn:factor=$factor + quest:budget=256" \
  --stack "tokenselect:init=16,local=128,top=256,chunk=64" \
  --stack "yarn:factor=$factor + snapkv:budget=256" \
  --stack "yarn:factor=$factor + h2o:budget=256" \
  --stack "yarn:factor=$factor + think-k:ratio=0.5" \
  --stack "masformer:window=128,full=2" \
  --stack "yarn:factor=$factor + masformer:window=128,full=2"
