// The micro-GEMM of attention: C[m][n] (+)= sum_k A(m, k) B[k][n], in float32, for a tile of 64 columns.
//
// A "unit" is what one multiply-add consumes of a row: a float, or a pair of bfloat16 (k = 2 channels) where the CPU has
// a dot product of pairs. A's units are broadcast, B's lie side by side, so neither needs a transposed copy:
// scores^T = K Q^T reads keys as they come, out^T = V^T P^T reads values as they come.
#pragma once
#include "vec.h"

namespace {

constexpr int kCols = 64;  // columns (queries) of a tile, and the row stride of B and C

#if defined(__AVX512BF16__)
#define LW_PAIRS 1
#else
#define LW_PAIRS 0
#endif

typedef uint32_t Pair;  // two bfloat16, the one with the lower index in the low half

LW_INLINE Vec multiply_add(float a, Vec b, Vec c) { return fma(splat(a), b, c); }
LW_INLINE Vec load_units(const float* p) { return load(p); }
#if LW_PAIRS
LW_INLINE Vec multiply_add(Pair a, IVec b, Vec c) {
  return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)isplat((int32_t)a), (__m512bh)b);
}
LW_INLINE IVec load_units(const Pair* p) {
  IVec v;
  memcpy(&v, p, sizeof v);
  return v;
}
#endif

constexpr int kPanel = kRegisters == 32 ? 4 : 2;  // vectors of columns that a micro-tile holds in registers
constexpr int kRows = 6;                          // rows of it

// One micro-tile. A(m, k) = a[m * lda + k] when `ByRow`, else a[k * lda + m].
template <int M, int N, bool ByRow, bool Add, class Unit>
LW_INLINE void micro(const Unit* a, int64_t lda, const Unit* b, float* c, int64_t depth) {
  Vec acc[M][N];
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) acc[i][j] = Add ? load(c + i * kCols + j * W) : Vec{};
  for (int64_t k = 0; k < depth; k++) {
    decltype(load_units(b)) columns[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) columns[j] = load_units(b + k * kCols + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      const Unit unit = ByRow ? a[i * lda + k] : a[k * lda + i];
#pragma GCC unroll 4
      for (int j = 0; j < N; j++) acc[i][j] = multiply_add(unit, columns[j], acc[i][j]);
    }
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) store(c + i * kCols + j * W, acc[i][j]);
}

template <int N, bool ByRow, bool Add, class Unit>
LW_INLINE void panel(const Unit* a, int64_t lda, const Unit* b, float* c, int64_t rows, int64_t depth) {
  const int64_t step = ByRow ? lda : 1;
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) micro<kRows, N, ByRow, Add>(a + i * step, lda, b, c + i * kCols, depth);
  for (; i < rows; i += 2) micro<2, N, ByRow, Add>(a + i * step, lda, b, c + i * kCols, depth);
}

// rows: even; cols: a multiple of W, at most kCols; depth in units.
template <bool ByRow, bool Add, class Unit>
void gemm(const Unit* a, int64_t lda, const Unit* b, float* c, int64_t rows, int64_t cols, int64_t depth) {
  int64_t j = 0;
  for (; j + kPanel * W <= cols; j += kPanel * W) panel<kPanel, ByRow, Add>(a, lda, b + j, c + j, rows, depth);
  for (; j < cols; j += W) panel<1, ByRow, Add>(a, lda, b + j, c + j, rows, depth);
}

}  // namespace
