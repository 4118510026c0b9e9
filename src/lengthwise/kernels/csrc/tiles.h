// The micro-GEMM on tile registers (AMX), over the operands of gemm.h with A by rows:
// an A tile is 16 rows of 16 pairs, a B tile 16 pairs of 16 columns, a C tile 16 by 16 floats.
//
// LW_EMULATE_TILES replaces the tile instructions by small functions of the same meaning, so that this path can be
// checked on a CPU without tile registers. It is never shipped.
#pragma once
#include "gemm.h"

#if defined(__AMX_TILE__) || defined(LW_EMULATE_TILES)
#define LW_TILES 1

namespace {

#if defined(LW_EMULATE_TILES)
struct Tile {
  uint32_t unit[16][16];
};
thread_local Tile tiles[8];
inline void tile_zero(int t) { memset(&tiles[t], 0, sizeof(Tile)); }
inline void tile_load(int t, const void* from, int64_t stride) {
  for (int i = 0; i < 16; i++) memcpy(tiles[t].unit[i], (const char*)from + i * stride, 64);
}
inline void tile_store(int t, void* to, int64_t stride) {
  for (int i = 0; i < 16; i++) memcpy((char*)to + i * stride, tiles[t].unit[i], 64);
}
inline void tile_multiply(int c, int a, int b) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) {
      float sum;
      memcpy(&sum, &tiles[c].unit[i][j], 4);
      for (int k = 0; k < 16; k++)
        for (int half = 0; half < 2; half++) {
          const uint32_t x = tiles[a].unit[i][k] >> (16 * half) << 16, y = tiles[b].unit[k][j] >> (16 * half) << 16;
          float fx, fy;
          memcpy(&fx, &x, 4);
          memcpy(&fy, &y, 4);
          sum += fx * fy;
        }
      memcpy(&tiles[c].unit[i][j], &sum, 4);
    }
}
inline void tiles_begin() {}
inline void tiles_end() {}
#else
#define tile_zero(t) _tile_zero(t)
#define tile_load(t, from, stride) _tile_loadd(t, from, stride)
#define tile_store(t, to, stride) _tile_stored(t, to, stride)
#define tile_multiply(c, a, b) _tile_dpbf16ps(c, a, b)
inline void tiles_begin() {  // palette 1, eight tiles of 16 rows of 64 bytes; the layout is Intel's
  alignas(64) uint8_t config[64] = {};
  config[0] = 1;
  for (int t = 0; t < 8; t++) {
    config[16 + 2 * t] = 64;
    config[48 + t] = 16;
  }
  _tile_loadconfig(config);
}
inline void tiles_end() { _tile_release(); }
#endif

// rows and cols: multiples of 16; depth: a multiple of 16 pairs. Strides in units.
template <bool Add>
void tile_gemm(const Pair* a, int64_t lda, const Pair* b, float* c, int64_t rows, int64_t cols, int64_t depth) {
  const int64_t wide = kCols * 4, a_stride = lda * 4;
  int64_t i = 0;
  for (; i + 32 <= rows; i += 32) {
    int64_t j = 0;
    for (; j + 32 <= cols; j += 32) {  // 2 x 2 tiles: four loads for four products
      float* at = c + i * kCols + j;
      if (Add) {
        tile_load(0, at, wide);
        tile_load(1, at + 16, wide);
        tile_load(2, at + 16 * kCols, wide);
        tile_load(3, at + 16 * kCols + 16, wide);
      } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
      }
      for (int64_t k = 0; k < depth; k += 16) {
        tile_load(4, a + i * lda + k, a_stride);
        tile_load(5, a + (i + 16) * lda + k, a_stride);
        tile_load(6, b + k * kCols + j, wide);
        tile_load(7, b + k * kCols + j + 16, wide);
        tile_multiply(0, 4, 6);
        tile_multiply(1, 4, 7);
        tile_multiply(2, 5, 6);
        tile_multiply(3, 5, 7);
      }
      tile_store(0, at, wide);
      tile_store(1, at + 16, wide);
      tile_store(2, at + 16 * kCols, wide);
      tile_store(3, at + 16 * kCols + 16, wide);
    }
    for (; j < cols; j += 16) {
      float* at = c + i * kCols + j;
      if (Add) {
        tile_load(0, at, wide);
        tile_load(1, at + 16 * kCols, wide);
      } else {
        tile_zero(0);
        tile_zero(1);
      }
      for (int64_t k = 0; k < depth; k += 16) {
        tile_load(4, a + i * lda + k, a_stride);
        tile_load(5, a + (i + 16) * lda + k, a_stride);
        tile_load(6, b + k * kCols + j, wide);
        tile_multiply(0, 4, 6);
        tile_multiply(1, 5, 6);
      }
      tile_store(0, at, wide);
      tile_store(1, at + 16 * kCols, wide);
    }
  }
  for (; i < rows; i += 16)
    for (int64_t j = 0; j < cols; j += 16) {
      float* at = c + i * kCols + j;
      if (Add)
        tile_load(0, at, wide);
      else
        tile_zero(0);
      for (int64_t k = 0; k < depth; k += 16) {
        tile_load(4, a + i * lda + k, a_stride);
        tile_load(6, b + k * kCols + j, wide);
        tile_multiply(0, 4, 6);
      }
      tile_store(0, at, wide);
    }
}

// A 16 x 16 square of pairs, transposed: rows of 16 units with the given strides.
inline void transpose16(const Pair* from, int64_t from_stride, Pair* to, int64_t to_stride) {
  __m512i x[16], y[16];
  for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_si512(from + i * from_stride);
  for (int i = 0; i < 8; i++) {  // 2 x 2 squares
    y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // 4 x 4
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int i = 0; i < 4; i++) {  // the four 128-bit quarters of each vector
    const __m512i low = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88), high = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    y[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
    y[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    y[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
  for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * to_stride, y[i]);
}

}  // namespace
#else
#define LW_TILES 0
#endif
