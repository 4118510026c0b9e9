// Keys, values and queries as the operands of the micro-GEMM. `Unit` is float, or Pair (two bfloat16 of one row).
#pragma once
#include "dtype.h"
#include "tiles.h"

namespace {

template <class Unit>
struct Packing;

// Sizes in units: `depth` of a row of keys, rows of values as the second product wants them.
template <>
struct Packing<float> {
  static constexpr bool kTiled = false;
  static int64_t depth(int64_t dim) { return dim; }
  static int64_t value_rows(int64_t dim) { return (dim + 1) / 2 * 2; }
  static constexpr int64_t kDepth = kSlots;  // of a key block in the second product

  static void row(const LwLane& x, int64_t head, int64_t token, int64_t dim, float* to) {
    load_row(x, head, token, dim, to);
  }

  // Values [slot][channel], those of dead slots zero.
  static void values(const LwLane& x, int64_t head, const int32_t* slots, int64_t dim, const bool* live, float* to,
                     float*) {
    const int64_t wide = value_rows(dim);
    for (int64_t s = 0; s < kSlots; s++) {
      float* at = to + s * wide;
      at[wide - 1] = 0;
      if (live[s])
        load_row(x, head, slots[s], dim, at);
      else
        memset(at, 0, wide * sizeof(float));
    }
  }
};

#if LW_PAIRS
LW_INLINE Pair pair(uint16_t low, uint16_t high) { return (Pair)low | (Pair)high << 16; }

template <>
struct Packing<Pair> {
  static constexpr bool kTiled = LW_TILES;
  static int64_t depth(int64_t dim) { return LW_TILES ? (dim + 31) / 32 * 16 : (dim + 1) / 2; }
  static int64_t value_rows(int64_t dim) { return LW_TILES ? (dim + 15) / 16 * 16 : (dim + 1) / 2 * 2; }
  static constexpr int64_t kDepth = kSlots / 2;

  // One row as bfloat16; what is not so already comes through float.
  static void row(const LwLane& x, int64_t head, int64_t token, int64_t dim, Pair* to) {
    uint16_t* half = (uint16_t*)to;
    if (x.dtype == LW_BF16) {
      memcpy(half, (const uint16_t*)x.data + head * x.head + token * x.token, dim * 2);
    } else {
      float wide[256];
      load_row(x, head, token, dim, wide);
      store_row(LW_BF16, half, wide, dim);
    }
    memset(half + dim, 0, depth(dim) * 4 - dim * 2);
  }

  // Pairs of slots: [slot pair][channel], or [channel][slot pair] for tiles. Values of dead slots are zero.
  static void values(const LwLane& x, int64_t head, const int32_t* slots, int64_t dim, const bool* live, Pair* to,
                     Pair* scratch) {
    static const uint16_t nothing[256] = {};
    const int64_t wide = value_rows(dim);
    Pair* pairs = kTiled ? scratch : to;
    for (int64_t s = 0; s < kSlots; s += 2) {
      uint16_t rows[2][256];
      const uint16_t* at[2];
      for (int i = 0; i < 2; i++) {
        at[i] = nothing;
        if (!live[s + i]) continue;
        at[i] = (const uint16_t*)x.data + head * x.head + slots[s + i] * x.token;
        if (x.dtype == LW_BF16) continue;
        float values[256];
        load_row(x, head, slots[s + i], dim, values);
        store_row(LW_BF16, rows[i], values, dim);
        at[i] = rows[i];
      }
      Pair* out = pairs + s / 2 * wide;
      int64_t d = 0;
      for (; d + W <= dim; d += W) {
        HVec even, odd;
        memcpy(&even, at[0] + d, sizeof even);
        memcpy(&odd, at[1] + d, sizeof odd);
        const IVec both = __builtin_convertvector(even, IVec) | __builtin_convertvector(odd, IVec) << 16;
        memcpy(out + d, &both, sizeof both);
      }
      for (; d < dim; d++) out[d] = pair(at[0][d], at[1][d]);
      for (; d < wide; d++) out[d] = 0;
    }
#if LW_TILES
    for (int64_t d = 0; d < wide; d += 16)
      for (int64_t s = 0; s < kDepth; s += 16) transpose16(pairs + s * wide + d, wide, to + d * kDepth + s, kDepth);
#endif
  }
};
#endif

// Queries [64] of one head as columns: to[unit][query]. Columns beyond n are zero.
template <class Unit>
void pack_queries(const LwLane& x, int64_t head, int64_t token, int64_t n, int64_t dim, Unit* to) {
  const int64_t depth = Packing<Unit>::depth(dim);
  Unit row[256];
  if (n < kCols) memset(to, 0, depth * kCols * sizeof(Unit));
  for (int64_t c = 0; c < n; c++) {
    Packing<Unit>::row(x, head, token + c, dim, row);
    for (int64_t i = 0; i < depth; i++) to[i * kCols + c] = row[i];
  }
}

// The keys of `n` slots by rows: to[slot][unit]. Rows beyond n are zero.
template <class Unit>
void pack_keys(const LwLane& x, int64_t head, const int32_t* slots, int64_t n, int64_t dim, Unit* to) {
  const int64_t depth = Packing<Unit>::depth(dim);
  for (int64_t s = 0; s < n; s++) Packing<Unit>::row(x, head, slots[s], dim, to + s * depth);
  memset(to + n * depth, 0, (kSlots - n) * depth * sizeof(Unit));
}

}  // namespace
