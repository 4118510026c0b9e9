// A matrix times one vector, y = W x + b, as every linear layer of a decoding step computes it: bound by reading W once.
// Sums are in float over a fixed order of columns, whatever the number of threads, and rounded once at the end.
#include <new>

#include "dtype.h"

struct LwLinearArgs {
  int64_t size;
  const void *x, *weight, *bias;  // [columns], [rows, columns] with a free row stride, [rows] or null
  void* out;                      // [rows]
  int64_t rows, columns, weight_row, threads;
  int32_t dtype;
};

namespace {

constexpr int64_t kAlone = 1 << 17;  // weights that are not worth a second thread
constexpr int64_t kAhead = 8192;     // bytes; found by trying 0 to 8192

template <int T>
LW_INLINE float one(const char* p, int64_t i) {
  if constexpr (T == LW_F32) return ((const float*)p)[i];
  if constexpr (T == LW_F16) return f16_float(((const uint16_t*)p)[i]);
  return bf16_float(((const uint16_t*)p)[i]);
}

// One row times x. Rows are read one after the other, as they lie, and asked for early: memory sets the pace.
template <int T>
float product(const LwLinearArgs& a, const float* x, int64_t row) {
  const char* w = (const char*)a.weight + row * a.weight_row * kSize<T>;
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= a.columns; i += 4 * W) {
    for (int64_t line = 0; line < 4 * W * kSize<T>; line += 64) __builtin_prefetch(w + i * kSize<T> + line + kAhead);
    for (int j = 0; j < 4; j++) sums[j] = fma(load_as<T>(w, i + j * W), load(x + i + j * W), sums[j]);
  }
  float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < a.columns; i++) total += one<T>(w, i) * x[i];
  return total + (a.bias ? one<T>((const char*)a.bias, row) : 0.f);
}

template <int T>
void multiply(const LwLinearArgs& a, const float* x, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < a.rows; row++) {
    const float y = product<T>(a, x, row);
    store_row(a.dtype, (char*)a.out + row * kSize<T>, &y, 1);
  }
}

}  // namespace

LW_EXPORT(linear)(const LwLinearArgs* args) {
  const LwLinearArgs& a = *args;
  if (a.size != sizeof(LwLinearArgs)) return LW_BAD_SIZE;
  if (a.rows < 1 || a.columns < 1 || a.threads < 1) return LW_BAD_SHAPE;
  if (a.dtype != LW_F32 && a.dtype != LW_BF16 && a.dtype != LW_F16) return LW_BAD_DTYPE;
  float few[4096];
  float* x = a.columns <= 4096 ? few : new (std::nothrow) float[a.columns];
  if (!x) return LW_NO_MEMORY;
  load_row(LwLane{a.x, nullptr, nullptr, 0, 0, 0, 0, 0, 0, a.dtype, 0}, 0, 0, a.columns, x);
  const int64_t threads = a.rows * a.columns <= kAlone ? 1 : a.threads;
  if (a.dtype == LW_F32) multiply<LW_F32>(a, x, threads);
  else if (a.dtype == LW_BF16) multiply<LW_BF16>(a, x, threads);
  else multiply<LW_F16>(a, x, threads);
  if (x != few) delete[] x;
  return LW_OK;
}
