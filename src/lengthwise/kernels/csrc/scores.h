// Scores of a tile, [key][query]: the product of keys and queries, the cap, and the mask.
#pragma once
#include "attend_pack.h"

namespace {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kNever = -1e30f;  // maximum of a query that has seen no key

// The queries [first, stop) of a tile that see a slot: positions ascend, so they are always a range.
struct Range {
  int32_t first, stop;
};

template <class Unit, bool Add>
LW_INLINE void multiply(const Unit* a, int64_t lda, const Unit* b, float* c, int64_t rows, int64_t cols, int64_t depth) {
#if LW_TILES
  if constexpr (Packing<Unit>::kTiled) return tile_gemm<Add>(a, lda, b, c, rows, cols, depth);
#endif
  gemm<!Add, Add>(a, lda, b, c, rows, cols, depth);  // keys come by rows, values by columns
}

// Scores to tanh(score * factor).
inline void cap_scores(float* scores, int64_t cols, float factor) {
  for (int64_t s = 0; s < kSlots; s++)
    for (int64_t c = 0; c < cols; c += W) {
      float* at = scores + s * kCols + c;
      store(at, tanhv(load(at) * factor));
    }
}

// Scores outside their range to -inf.
inline void mask_scores(float* scores, const Range* range, int64_t cols) {
  for (int64_t s = 0; s < kSlots; s++) {
    if (range[s].first == 0 && range[s].stop >= cols) continue;
    for (int64_t c = 0; c < cols; c += W) {
      const IVec lane = lanes() + (int32_t)c;
      const IVec inside = (lane >= range[s].first) & (lane < range[s].stop);
      float* at = scores + s * kCols + c;
      store(at, select(inside, load(at), splat(-INFINITY)));
    }
  }
}

}  // namespace
