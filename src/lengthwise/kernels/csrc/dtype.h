// Loads of float32, bfloat16, float16 and integer codes as float, and stores of float as the first three.
#pragma once
#include "args.h"
#include "vec.h"

namespace {

LW_INLINE Vec widen_bf16(HVec h) { return floats(__builtin_convertvector(h, IVec) << 16); }

LW_INLINE Vec widen_f16(HVec h) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps((__m128i)h);
#else
  const IVec u = __builtin_convertvector(h, IVec);
  // shifted to float's place the exponent is 112 too small, also that of a subnormal; infinity and NaN need all ones
  const Vec finite = floats((u & 0x7fff) << 13) * 5.192296858534828e33f;
  const IVec special = ((u & 0x7fff) << 13) | 0x7f800000;
  const IVec magnitude = (u & 0x7c00) == 0x7c00 ? special : bits(finite);
  return floats(magnitude | ((u & 0x8000) << 16));
#endif
}

LW_INLINE float bf16_float(uint16_t h) {
  const uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
LW_INLINE uint16_t float_bf16(float f) {  // to nearest, ties to even
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
LW_INLINE float f16_float(uint16_t h) {
  const uint32_t u = (uint32_t)(h & 0x7fff) << 13;
  uint32_t bits;
  float f;
  memcpy(&f, &u, sizeof f);
  f *= 5.192296858534828e33f;
  memcpy(&bits, &f, sizeof bits);
  if ((h & 0x7c00) == 0x7c00) bits = u | 0x7f800000u;
  bits |= (uint32_t)(h & 0x8000) << 16;
  memcpy(&f, &bits, sizeof f);
  return f;
}
LW_INLINE uint16_t float_f16(float f) {  // to nearest, ties to even
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  const uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7e00;
  if (u >= 0x477ff000u) return sign | 0x7c00;  // 65520 and above
  if (u < 0x38800000u) {                       // subnormal: adding 0.5 rounds at the last bit that float16 has there
    float g;
    memcpy(&g, &u, sizeof g);
    g += 0.5f;
    memcpy(&u, &g, sizeof u);
    return sign | (uint16_t)(u - 0x3f000000u);
  }
  return sign | (uint16_t)((u - 0x38000000u + 0xfffu + ((u >> 13) & 1)) >> 13);
}

LW_INLINE HVec narrow_bf16(Vec v) {
  const IVec u = bits(v);
  const IVec rounded = ((u + 0x7fff + ((u >> 16) & 1)) >> 16) & 0xffff;
  const IVec nan = v != v;
  return __builtin_convertvector(nan ? isplat(0x7fc0) : rounded, HVec);
}

// W values of one row that starts at p, as float.
LW_INLINE Vec load_f32(const void* p, int64_t i) { return load((const float*)p + i); }
LW_INLINE Vec load_bf16(const void* p, int64_t i) {
  HVec h;
  memcpy(&h, (const uint16_t*)p + i, sizeof h);
  return widen_bf16(h);
}
LW_INLINE Vec load_f16(const void* p, int64_t i) {
  HVec h;
  memcpy(&h, (const uint16_t*)p + i, sizeof h);
  return widen_f16(h);
}

// As widen_bf16, where the compiler makes poor code of that: vectors of half the width.
LW_INLINE Vec widen(HVec h) {
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
  return widen_bf16(h);
#endif
}

template <int T>
constexpr int64_t kSize = T == LW_F32 ? 4 : 2;

template <int T>
LW_INLINE Vec load_as(const void* p, int64_t i) {
  if constexpr (T == LW_F32) return load_f32(p, i);
  if constexpr (T == LW_F16) return load_f16(p, i);
  HVec h;
  memcpy(&h, (const uint16_t*)p + i, sizeof h);
  return widen(h);
}

// One token of one head of a lane as float: n values, none read beyond them.
inline void load_row(const LwLane& lane, int64_t head, int64_t token, int64_t n, float* out) {
  const int64_t at = head * lane.head + token * lane.token;
  int64_t i = 0;
  if (lane.dtype == LW_F32) {
    memcpy(out, (const float*)lane.data + at, n * sizeof(float));
  } else if (lane.dtype == LW_BF16) {
    const uint16_t* p = (const uint16_t*)lane.data + at;
    for (; i + W <= n; i += W) store(out + i, load_bf16(p, i));
    for (; i < n; i++) out[i] = bf16_float(p[i]);
  } else if (lane.dtype == LW_F16) {
    const uint16_t* p = (const uint16_t*)lane.data + at;
    for (; i + W <= n; i += W) store(out + i, load_f16(p, i));
    for (; i < n; i++) out[i] = f16_float(p[i]);
  } else {
    const uint8_t* p = (const uint8_t*)lane.data + at;
    const uint16_t* low = (const uint16_t*)lane.low + head * lane.low_head + token * lane.low_token;
    const uint16_t* step = (const uint16_t*)lane.step + head * lane.step_head + token * lane.step_token;
    for (int64_t g = 0; g * lane.group < n; g++) {
      const float l = f16_float(low[g]), s = f16_float(step[g]);
      const int64_t stop = (g + 1) * lane.group < n ? (g + 1) * lane.group : n;
      for (i = g * lane.group; i < stop; i++) out[i] = l + s * (float)p[i];
    }
  }
}

// n floats as `dtype`, which is not LW_CODES.
inline void store_row(int32_t dtype, void* to, const float* from, int64_t n) {
  if (dtype == LW_F32) {
    memcpy(to, from, n * sizeof(float));
  } else if (dtype == LW_BF16) {
    uint16_t* p = (uint16_t*)to;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      const HVec h = narrow_bf16(load(from + i));
      memcpy(p + i, &h, sizeof h);
    }
    for (; i < n; i++) p[i] = float_bf16(from[i]);
  } else {
    uint16_t* p = (uint16_t*)to;
    for (int64_t i = 0; i < n; i++) p[i] = float_f16(from[i]);
  }
}

inline int64_t dtype_size(int32_t dtype) { return dtype == LW_F32 ? 4 : dtype == LW_CODES ? 1 : 2; }

}  // namespace
