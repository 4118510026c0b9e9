// Vectors of W floats by the GCC/Clang vector extensions, so that one source serves every instruction set.
// Everything is in an unnamed namespace: each object is compiled with other flags, and a function that the linker shares
// between objects could run on the wrong CPU. For the same reason nothing here calls templates of the standard library
// on types that other objects have too.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LW_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a vector
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int W = 8;
constexpr int kRegisters = 16;
#else
constexpr int W = 4;
#if defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
#endif

typedef float Vec __attribute__((vector_size(W * 4)));
typedef int32_t IVec __attribute__((vector_size(W * 4)));
typedef uint16_t HVec __attribute__((vector_size(W * 2)));

LW_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
LW_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

LW_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
LW_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
LW_INLINE Vec splat(float x) { return Vec{} + x; }
LW_INLINE IVec isplat(int32_t x) { return IVec{} + x; }
LW_INLINE IVec bits(Vec v) { return (IVec)v; }
LW_INLINE Vec floats(IVec v) { return (Vec)v; }
// The build allows contraction, so this is one instruction where there is FMA.
LW_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
// A NaN in `b` stays, one in `a` is dropped: keep the value of interest in b.
LW_INLINE Vec vmax(Vec a, Vec b) { return a > b ? a : b; }
LW_INLINE Vec vmin(Vec a, Vec b) { return a < b ? a : b; }
LW_INLINE Vec select(IVec mask, Vec yes, Vec no) { return mask ? yes : no; }

LW_INLINE IVec lanes() {  // 0, 1, 2, ...
  IVec v;
  for (int i = 0; i < W; i++) v[i] = i;
  return v;
}
LW_INLINE bool any(IVec mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  int32_t r = 0;
  for (int i = 0; i < W; i++) r |= mask[i];
  return r != 0;
#endif
}
LW_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float r = 0;
  for (int i = 0; i < W; i++) r += v[i];
  return r;
#endif
}
LW_INLINE float greatest(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float r = v[0];
  for (int i = 1; i < W; i++) r = v[i] > r ? v[i] : r;
  return r;
#endif
}

// 2^x to about 2e-7 (relative) for x <= 127; below -126 it is 2^-126, not 0. A NaN stays.
// Rounding to an integer by a magic number; coefficients: least squares of 2^f on Chebyshev nodes of [-1/2, 1/2].
LW_INLINE Vec exp2v(Vec x) {
  x = vmax(splat(-126.f), x);
#if defined(__AVX512F__)
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Vec magic = splat(12582912.f), shifted = x + magic;
  const Vec n = shifted - magic;
#endif
  const Vec f = x - n;
  Vec p = splat(1.33909e-3f);
  p = fma(p, f, splat(9.67217e-3f));
  p = fma(p, f, splat(5.550361e-2f));
  p = fma(p, f, splat(2.4022228e-1f));
  p = fma(p, f, splat(6.9314718e-1f));
  p = fma(p, f, splat(1.0f));
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return floats(bits(p) + (bits(shifted) << 23));
#endif
}

// tanh(x) to about 2e-7 (absolute). A NaN stays.
LW_INLINE Vec tanhv(Vec x) {
  x = vmin(splat(15.f), vmax(splat(-15.f), x));
  return 1.f - 2.f / (1.f + exp2v(x * 2.8853900817779268f));
}

}  // namespace
