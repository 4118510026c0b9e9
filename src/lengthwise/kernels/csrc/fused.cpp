// The element-wise parts of a Llama layer in one pass over memory each: RMSNorm (with the addition before it), rotary
// embedding, SiLU times. Every intermediate is rounded to the model's dtype where the stock operators round it, so that
// results agree with theirs: rotary bit for bit, the others but for the last bit of sums and exponentials.
#include <algorithm>

#include "dtype.h"

struct LwRmsNormArgs {
  int64_t size;
  const void *x, *residual, *weight;  // [rows, width], the same or null, [width]
  void *out, *total;                  // [rows, width]; x + residual, or null
  int64_t x_row, residual_row;        // strides in elements; out and total are contiguous
  int64_t rows, width, threads;
  int32_t dtype;
  float eps;
};

struct LwRotaryArgs {
  int64_t size;
  LwLane q, k, q_out, k_out;  // [heads, tokens, dim]; the outputs may be the inputs
  const void *cos, *sin;      // [tokens, dim]
  int64_t cos_row, sin_row;
  int64_t q_heads, k_heads, tokens, dim, threads;
};

struct LwSiluMulArgs {
  int64_t size;
  const void *gate, *up;  // [rows, width]
  void* out;              // [rows, width], contiguous
  int64_t gate_row, up_row;
  int64_t rows, width, threads;
  int32_t dtype;
};

namespace {

constexpr int64_t kAlone = 1 << 15;  // elements that are not worth a second thread

LW_INLINE Vec spread(float x) { return x - Vec{}; }  // 0 + x would be an addition: it turns -0 into 0

// The value as it is, and out of the compiler's sight: a product that must be rounded before it is added.
LW_INLINE Vec apart(Vec v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

LW_INLINE HVec narrow_f16(Vec v) {
#if defined(__AVX512F__)
  return (HVec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (HVec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  HVec h;
  for (int i = 0; i < W; i++) h[i] = float_f16(v[i]);
  return h;
#endif
}

// To the nearest bfloat16, ties to even. A NaN that comes from bfloat16 values has 16 zeros at its end and stays as it is.
LW_INLINE IVec round_bits(Vec v) {
  const IVec u = bits(v);
  return (u + 0x7fff + ((u >> 16) & 1)) & (int32_t)0xffff0000;
}

LW_INLINE HVec narrow(Vec v) {
  const IVec u = (round_bits(v) >> 16) & 0xffff;
#if defined(__AVX512F__)
  return (HVec)_mm512_cvtepi32_epi16((__m512i)u);
#else
  return __builtin_convertvector(u, HVec);
#endif
}

// Values i.. of n as float, 0 beyond.
template <int T>
LW_INLINE Vec get(const void* p, int64_t i, int64_t n) {
  if (n - i >= W) return load_as<T>(p, i);
  char part[W * kSize<T>] = {};
  memcpy(part, (const char*)p + i * kSize<T>, (n - i) * kSize<T>);
  return load_as<T>(part, 0);
}

template <int T>
LW_INLINE void put(void* p, int64_t i, int64_t n, Vec v) {
  const int64_t bytes = std::min<int64_t>(W, n - i) * kSize<T>;
  char* to = (char*)p + i * kSize<T>;
  if constexpr (T == LW_F32) {
    bytes == sizeof v ? memcpy(to, &v, sizeof v) : memcpy(to, &v, bytes);
  } else {
    const HVec h = T == LW_BF16 ? narrow(v) : narrow_f16(v);
    bytes == sizeof h ? memcpy(to, &h, sizeof h) : memcpy(to, &h, bytes);
  }
}

// As a tensor of dtype T would hold it.
template <int T>
LW_INLINE Vec rounded(Vec v) {
  if constexpr (T == LW_BF16) return floats(round_bits(v));
  if constexpr (T == LW_F16) return widen_f16(narrow_f16(v));
  return apart(v);
}

LW_INLINE const void* row_at(const void* p, int64_t elements, int64_t size) { return (const char*)p + elements * size; }
LW_INLINE void* row_at(void* p, int64_t elements, int64_t size) { return (char*)p + elements * size; }

template <int T>
void norm_row(const LwRmsNormArgs& a, int64_t row) {
  const int64_t n = a.width, size = kSize<T>;
  const void* x = row_at(a.x, row * a.x_row, size);
  void* out = row_at(a.out, row * n, size);
  Vec squares[4] = {};
  if (a.residual) {
    const void* residual = row_at(a.residual, row * a.residual_row, size);
    void* total = row_at(a.total, row * n, size);
    for (int64_t i = 0; i < n; i += W) put<T>(total, i, n, get<T>(residual, i, n) + get<T>(x, i, n));
    x = total;
  }
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int j = 0; j < 4; j++) {
      const Vec v = load_as<T>(x, i + j * W);
      squares[j] = fma(v, v, squares[j]);
    }
  for (; i < n; i += W) {
    const Vec v = get<T>(x, i, n);
    squares[0] = fma(v, v, squares[0]);
  }
  const float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)n;
  const Vec inverse = spread(1.f / std::sqrt(mean + a.eps));
  for (i = 0; i < n; i += W) put<T>(out, i, n, rounded<T>(get<T>(x, i, n) * inverse) * get<T>(a.weight, i, n));
}

template <int T>
void rotate_row(const void* x, void* out, const void* cos, const void* sin, int64_t dim) {
  const int64_t half = dim / 2, there = half * kSize<T>;
  for (int64_t i = 0; i < half; i += W) {
    const Vec a = get<T>(x, i, half), b = get<T>((const char*)x + there, i, half);
    const Vec c = get<T>(cos, i, half), d = get<T>((const char*)cos + there, i, half);
    const Vec s = get<T>(sin, i, half), t = get<T>((const char*)sin + there, i, half);
    put<T>(out, i, half, rounded<T>(a * c) - rounded<T>(b * s));
    put<T>((char*)out + there, i, half, rounded<T>(b * d) + rounded<T>(a * t));
  }
}

template <int T>
void rotate_token(const LwRotaryArgs& a, int64_t token) {
  const void* cos = row_at(a.cos, token * a.cos_row, kSize<T>);
  const void* sin = row_at(a.sin, token * a.sin_row, kSize<T>);
  for (int64_t h = 0; h < a.q_heads + a.k_heads; h++) {
    const bool is_q = h < a.q_heads;
    const LwLane &in = is_q ? a.q : a.k, &out = is_q ? a.q_out : a.k_out;
    const int64_t head = is_q ? h : h - a.q_heads;
    rotate_row<T>(row_at(in.data, head * in.head + token * in.token, kSize<T>),
                  row_at((void*)out.data, head * out.head + token * out.token, kSize<T>), cos, sin, a.dim);
  }
}

template <int T>
void silu_mul_row(const LwSiluMulArgs& a, int64_t row) {
  const int64_t n = a.width, size = kSize<T>;
  const void *gate = row_at(a.gate, row * a.gate_row, size), *up = row_at(a.up, row * a.up_row, size);
  void* out = row_at(a.out, row * n, size);
  for (int64_t i = 0; i < n; i += W) {
    const Vec x = get<T>(gate, i, n), power = x * -1.4426950408889634f;
    const Vec e = select(power > 127.f, spread(INFINITY), exp2v(vmin(spread(127.f), power)));
    put<T>(out, i, n, rounded<T>(x / (1.f + e)) * get<T>(up, i, n));
  }
}

// Calls f.template operator()<dtype>(i) for every row i, on as many threads as the work is worth.
template <class F>
int32_t for_rows(int32_t dtype, int64_t rows, int64_t width, int64_t threads, const F& f) {
  if (rows < 0 || width < 1 || threads < 1) return LW_BAD_SHAPE;
  if (dtype != LW_F32 && dtype != LW_BF16 && dtype != LW_F16) return LW_BAD_DTYPE;
  threads = rows * width <= kAlone ? 1 : std::min(threads, rows);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; i++) {
    if (dtype == LW_F32) f.template row<LW_F32>(i);
    else if (dtype == LW_BF16) f.template row<LW_BF16>(i);
    else f.template row<LW_F16>(i);
  }
  return LW_OK;
}

struct NormRows {
  const LwRmsNormArgs& a;
  template <int T>
  void row(int64_t i) const { norm_row<T>(a, i); }
};
struct RotaryRows {
  const LwRotaryArgs& a;
  template <int T>
  void row(int64_t i) const { rotate_token<T>(a, i); }
};
struct SiluRows {
  const LwSiluMulArgs& a;
  template <int T>
  void row(int64_t i) const { silu_mul_row<T>(a, i); }
};

}  // namespace

LW_EXPORT(rms_norm)(const LwRmsNormArgs* args) {
  if (args->size != sizeof(LwRmsNormArgs)) return LW_BAD_SIZE;
  return for_rows(args->dtype, args->rows, args->width, args->threads, NormRows{*args});
}

LW_EXPORT(rotary)(const LwRotaryArgs* args) {
  const LwRotaryArgs& a = *args;
  if (a.size != sizeof(LwRotaryArgs)) return LW_BAD_SIZE;
  if (a.dim < 2 || a.dim % 2 || a.q_heads < 0 || a.k_heads < 0) return LW_BAD_SHAPE;
  if (a.k.dtype != a.q.dtype || a.q_out.dtype != a.q.dtype || a.k_out.dtype != a.q.dtype) return LW_BAD_DTYPE;
  return for_rows(a.q.dtype, a.tokens, (a.q_heads + a.k_heads) * a.dim, a.threads, RotaryRows{a});
}

LW_EXPORT(silu_mul)(const LwSiluMulArgs* args) {
  if (args->size != sizeof(LwSiluMulArgs)) return LW_BAD_SIZE;
  return for_rows(args->dtype, args->rows, args->width, args->threads, SiluRows{*args});
}
