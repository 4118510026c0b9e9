#!/usr/bin/env bash
# Every position and reading method at 1x to 16x of the window that pocket-reader was trained on (512 tokens).
#
#   benchmarks/methods.sh OUT                     one pass key, one JSON key: about two hours of one core
#   TASKS="multi-query trace" benchmarks/methods.sh OUT
#   STACKS=more benchmarks/methods.sh OUT         only the second list (or first: only the first one)
#   python scripts/methods_table.py OUT/results.jsonl      the tables of docs/results/methods.md
#   python benchmarks/methods_loss.py             perplexity at the same lengths
#
# Resumable: run it again to go on. CPU seconds of one sample at 8,192 tokens: .4 to 1.5, but tokenselect 1, infllm 2
# to 5, longheads 7, squeezed 9, softplus 27. CLEX=FILE and SEA=FILE (scripts/fit_clex.py, scripts/fit_sea.py) add the
# trained rows of the two. Not here: set-prompt and code-split, which read several documents or code (`lengthwise ask`).
set -euo pipefail
out=${1:-runs/methods}
factor='{max(1, length/window)}'
twice='{max(1, 2*length/window)}'
group='{min(256, 2**ceil(log2(max(1, (length-256)/256))))}'
tasks=()
for task in ${TASKS:-needle:keys=8 pairs:keys=16}; do tasks+=(--task "$task"); done
first=(
  dense
  "linear:factor=$factor"
  "ntk:factor=$factor"
  "dynamic-ntk:length={max(length, window)}"
  "yarn:factor=$factor"
  streaming-llm:window=508
  lm-infinite:sinks=10,window=502
  lm-infinite:sinks=10,window=502,top_k=5,top_k_layer=0
  "self-extend:window=256,group=$group"
  rerope:window=256
  sirllm:entropy=254,recent=254
  infllm:init=16,local=256,block=32,top=6,chunk=32,to=ram
  infllm:init=16,local=256,block=16,top=12,chunk=32,rule=max,to=ram
  xl3m:segment=128,overlap=32,zoom=0
  "yarn:factor=$factor + int8:group=32"
  "yarn:factor=$factor + int4:group=32"
  power
  truncated
  abf
  "distributional:factor=$factor"
  "ntk:length={max(length, window)}"
  dual-chunk
  "yarn:factor=$factor + block-sparse"
  "yarn:factor=$factor + quest:budget=256"
  tokenselect:init=16,local=128,top=256,chunk=64
  "yarn:factor=$factor + snapkv:budget=256"
  "yarn:factor=$factor + h2o:budget=256"
  "yarn:factor=$factor + think-k:ratio=0.5"
  masformer:window=128,full=2
  "yarn:factor=$factor + masformer:window=128,full=2"
)
more=(
  clex
  ${CLEX:+"clex:params=$CLEX"}
  "yarn:factor=$factor + minference:vertical=64,slash=192"
  "yarn:factor=$factor + hip:top=256,sinks=64,window=128"
  "yarn:factor=$factor + lserve:sinks=64,window=128,budget=256"
  ${SEA:+"yarn:factor=$factor + sea:top=256,params=$SEA"}
  "yarn:factor=$factor + softplus"
  "yarn:factor=$factor + ntk-attention:prefix=64"
  longheads:chunk=64
  "yarn:factor=$factor + squeezed:observed=16"
  "yarn:factor=$factor + tova:budget=256"
  "yarn:factor=$factor + knorm:budget=256"
  "yarn:factor=$factor + pyramidkv:budget=256"
  "yarn:factor=$factor + lazy-eviction:budget=256,window=32"
  "yarn:factor=$factor + gemfilter:top=256"
  "yarn:factor=$factor + lazyllm"
  "yarn:factor=$twice + jrt"
  "yarn:factor=$factor + alr2:facts=32"
)
case ${STACKS:-all} in
  first) stacks=("${first[@]}") ;;
  more) stacks=("${more[@]}") ;;
  all) stacks=("${first[@]}" "${more[@]}") ;;
  *) echo "STACKS is first, more or all, not '$STACKS'" >&2; exit 2 ;;
esac
chosen=()
for stack in "${stacks[@]}"; do chosen+=(--stack "$stack"); done
export OMP_NUM_THREADS=1
lengthwise compare --model pocket-reader --report "$out" --trials "${TRIALS:-8}" --depth 0.1,0.4,0.7,1 \
  --length "${LENGTHS:-512,1k,2k,4k,8k}" "${tasks[@]}" "${chosen[@]}"
