// Attention of one query position over pages of 64 slots (flash-decoding: keys split, partials merged).
//
// The work is cut into units of kUnit pages of one KV head, whatever the number of threads, and partials are merged in
// the order of the units: so the result does not depend on the number of threads, not even in its last bit.
// Of a page the visible slots alone are read, widened to float32 (from any dtype) and used by the whole GQA group.
#include <cstdlib>
#include <utility>

#include "dtype.h"

struct LwDecodeArgs {
  int64_t size;
  const float* q;  // [heads, dim], contiguous
  LwLane k, v;
  const int32_t* pages;  // [1 or kv_heads, page_count], -1 pads
  int64_t page_count, page_group;  // page_count -1: every page
  const uint8_t* seen;  // [1 or kv_heads, length], 0 hides a slot; null: all seen
  int64_t seen_group;
  int64_t heads, kv_heads, dim, value_dim, length;
  float scale, softcap;  // softcap 0: none
  float* out;            // [heads, value_dim]
  float* lse;            // [heads]
  int64_t pairs;         // returned: (query head, key) pairs scored
  int64_t threads;
};

namespace {

constexpr int64_t kUnit = 16;  // pages
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr int kKeys = kRegisters >= 32 ? 4 : 2;     // keys scored at once
constexpr int kColumns = kRegisters >= 32 ? 4 : 2;  // vectors of an output row held in registers at once

LW_INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Position p: a[p] + a[p ^ S] where bit S of p is clear, b[p] + b[p ^ S] where it is set: a blend and a shuffle.
template <int S, int... P>
LW_INLINE Vec fold(Vec a, Vec b, std::integer_sequence<int, P...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (P & S ? W + P : P)...) +
         __builtin_shufflevector(a, b, (P & S ? W + (P ^ S) : P ^ S)...);
#else
  return __builtin_shuffle(a, b, IVec{(P & S ? W + P : P)...}) +
         __builtin_shuffle(a, b, IVec{(P & S ? W + (P ^ S) : P ^ S)...});
#endif
}

// The sums of W vectors, as one vector.
template <int S = 1>
LW_INLINE Vec sums(Vec* v) {
  if constexpr (S == W) {
    return v[0];
  } else {
    for (int j = 0; j < W; j += 2 * S) v[j] = fold<S>(v[j], v[j + S], std::make_integer_sequence<int, W>{});
    return sums<2 * S>(v);
  }
}

LW_INLINE Vec spread(float x) { return x - Vec{}; }  // 0 + x would be an addition: it turns -0 into 0

// W values of a row, as float.
template <int Dtype>
LW_INLINE Vec read(const void* row, int64_t i) {
  if constexpr (Dtype == LW_F32) return load_f32(row, i);
  if constexpr (Dtype == LW_F16) return load_f16(row, i);
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)((const uint16_t*)row + i))),
                                16);
#else
  return load_bf16(row, i);
#endif
}

// The rows of a page in memory or scratch: `dim` values (a multiple of W) each. `ahead` bytes on lies the same row of
// the next page; `bytes` of it are fetched early (0: none).
struct Rows {
  const void* at[kSlots];  // padded to a multiple of W with rows that may be read
  int64_t dim, ahead, bytes;
};

LW_INLINE void fetch_ahead(const Rows& rows, int64_t i) {
  for (int64_t b = 0; b < rows.bytes; b += 64) __builtin_prefetch((const char*)rows.at[i] + rows.ahead + b);
}

// s[h][i] = q[h] . k[i] for i < n rounded up to W; rows of q are `dim` floats apart, of s 64.
template <int H, int Dtype>
void dots(const float* q, const Rows& k, int64_t n, float* s) {
  const int64_t dim = k.dim;
  for (int64_t first = 0; first < n; first += W) {
    Vec part[H][W];
    for (int i = 0; i < W; i += kKeys) {
      Vec acc[H][kKeys] = {};
      const void* const* row = k.at + first + i;
      for (int j = 0; j < kKeys; j++) fetch_ahead(k, first + i + j);
      for (int64_t d = 0; d < dim; d += W) {
        Vec x[kKeys];
        for (int j = 0; j < kKeys; j++) x[j] = read<Dtype>(row[j], d);
        for (int h = 0; h < H; h++) {
          const Vec y = load(q + h * dim + d);
          for (int j = 0; j < kKeys; j++) acc[h][j] = fma(x[j], y, acc[h][j]);
        }
      }
      for (int h = 0; h < H; h++)
        for (int j = 0; j < kKeys; j++) part[h][i + j] = acc[h][j];
    }
    for (int h = 0; h < H; h++) store(s + h * kSlots + first, sums(part[h]));
  }
}

// o[h] = o[h] * keep[h] + sum over i < n of p[h][i] v[i], in N vectors of a row from value d on.
template <int H, int Dtype, int N>
LW_INLINE void mix_columns(const float* p, const Rows& v, int64_t n, const float* keep, int64_t d, float* o) {
  Vec acc[H][N];
  for (int h = 0; h < H; h++)
    for (int c = 0; c < N; c++) acc[h][c] = load(o + h * v.dim + d + c * W) * keep[h];
  for (int64_t i = 0; i < n; i++) {
    if (d == 0) fetch_ahead(v, i);
    Vec x[N];
    for (int c = 0; c < N; c++) x[c] = read<Dtype>(v.at[i], d + c * W);
    for (int h = 0; h < H; h++) {
      const Vec weight = spread(p[h * kSlots + i]);
      for (int c = 0; c < N; c++) acc[h][c] = fma(weight, x[c], acc[h][c]);
    }
  }
  for (int h = 0; h < H; h++)
    for (int c = 0; c < N; c++) store(o + h * v.dim + d + c * W, acc[h][c]);
}

template <int H, int Dtype>
void mix(const float* p, const Rows& v, int64_t n, const float* keep, float* o) {
  int64_t d = 0;
  for (; d + kColumns * W <= v.dim; d += kColumns * W) mix_columns<H, Dtype, kColumns>(p, v, n, keep, d, o);
  for (; d < v.dim; d += W) mix_columns<H, Dtype, 1>(p, v, n, keep, d, o);
}

struct Scratch {
  float *k, *v, *s, *keep;  // [64, dim], [64, value_dim], [group, 64], [group]; dims rounded up to W
};

struct Partial {
  float *o, *top, *total;  // [group, value_dim rounded up to W], [group] (in powers of 2), [group]
};

// load_row for codes whose groups are whole vectors.
void widen_codes(const LwLane& lane, int64_t head, int64_t token, int64_t dim, float* out) {
  const uint8_t* p = (const uint8_t*)lane.data + head * lane.head + token * lane.token;
  const uint16_t* low = (const uint16_t*)lane.low + head * lane.low_head + token * lane.low_token;
  const uint16_t* step = (const uint16_t*)lane.step + head * lane.step_head + token * lane.step_token;
  const int64_t group = lane.group;
  for (int64_t start = 0; start < dim; start += group, low++, step++) {
    const Vec l = spread(f16_float(*low)), s = spread(f16_float(*step));
    for (int64_t d = start; d < start + group; d += W) {
      typedef uint8_t BVec __attribute__((vector_size(W)));
      BVec codes;
      memcpy(&codes, p + d, sizeof codes);
#if defined(__AVX512F__)
      const IVec wide = (IVec)_mm512_cvtepu8_epi32((__m128i)codes);
#else
      const IVec wide = __builtin_convertvector(codes, IVec);
#endif
      store(out + d, fma(s, __builtin_convertvector(wide, Vec), l));
    }
  }
}

// The rows of the n `slots`: as they lie in the lane, or widened into `scratch` where W does not divide them.
int32_t rows_of(const LwLane& lane, int64_t head, const int64_t* slots, int64_t n, int64_t dim, float* scratch,
                Rows& rows) {
  const bool direct = lane.dtype != LW_CODES && dim % W == 0;
  const bool whole = lane.dtype == LW_CODES && lane.group % W == 0;
  const int64_t size = dtype_size(lane.dtype), step = lane.token * size;
  const char* first = (const char*)lane.data + head * lane.head * size;
  rows.dim = up(dim, W);
  for (int64_t i = 0; i < n; i++) rows.at[i] = first + slots[i] * step;
  for (int64_t i = 0; i < n && !direct; i++) {
    float* to = scratch + i * rows.dim;
    fetch_ahead(rows, i);
    whole ? widen_codes(lane, head, slots[i], dim, to) : load_row(lane, head, slots[i], dim, to);
    rows.at[i] = to;
  }
  for (int64_t i = n; i < up(n, W); i++) rows.at[i] = rows.at[n - 1];
  if (!direct) rows.bytes = 0;
  return direct ? lane.dtype : (int32_t)LW_F32;
}

template <int H>
void dots(int32_t dtype, const float* q, const Rows& k, int64_t n, float* s) {
  if (dtype == LW_F32) dots<H, LW_F32>(q, k, n, s);
  else if (dtype == LW_BF16) dots<H, LW_BF16>(q, k, n, s);
  else dots<H, LW_F16>(q, k, n, s);
}

template <int H>
void mix(int32_t dtype, const float* p, const Rows& v, int64_t n, const float* keep, float* o) {
  if (dtype == LW_F32) mix<H, LW_F32>(p, v, n, keep, o);
  else if (dtype == LW_BF16) mix<H, LW_BF16>(p, v, n, keep, o);
  else mix<H, LW_F16>(p, v, n, keep, o);
}

// One page into the partial of its unit.
int64_t page_into(const LwDecodeArgs& a, const float* q, int64_t head, int64_t page, int64_t next, const Scratch& w,
                  const Partial& out) {
  const int64_t dim = up(a.dim, W), value_dim = up(a.value_dim, W), group = a.heads / a.kv_heads;
  const int64_t start = page * kSlots, stop = start + kSlots < a.length ? start + kSlots : a.length;
  const uint8_t* seen = a.seen ? a.seen + head * a.seen_group : nullptr;
  int64_t slots[kSlots], n = 0;
  if (seen) {
    for (int64_t slot = start; slot < stop; slot++) {
      slots[n] = slot;
      n += seen[slot] != 0;
    }
  } else {
    for (; n < stop - start; n++) slots[n] = start + n;
  }
  if (n == 0) return 0;
  const int64_t slots_ahead = next < 0 ? 0 : (next - page) * kSlots;
  Rows rows;
  auto point_at = [&](const LwLane& lane, int64_t width, float* scratch) {
    const int64_t size = dtype_size(lane.dtype);
    rows.ahead = slots_ahead * lane.token * size;
    rows.bytes = next < 0 ? 0 : width * size;
    return rows_of(lane, head, slots, n, width, scratch, rows);
  };
  int32_t dtype = point_at(a.k, a.dim, w.k);
  for (int64_t h = 0; h < group;) {
    const float* qh = q + h * dim;
    float* sh = w.s + h * kSlots;
    if (group - h >= 4) dots<4>(dtype, qh, rows, n, sh), h += 4;
    else if (group - h == 3) dots<3>(dtype, qh, rows, n, sh), h += 3;
    else if (group - h == 2) dots<2>(dtype, qh, rows, n, sh), h += 2;
    else dots<1>(dtype, qh, rows, n, sh), h += 1;
    rows.bytes = 0;  // fetched by now
  }
  const float minus_infinity = -INFINITY;
  for (int64_t h = 0; h < group; h++) {
    float* s = w.s + h * kSlots;
    Vec best = splat(minus_infinity);
    for (int64_t i = 0; i < n; i += W) {
      Vec x = load(s + i);
      if (a.softcap != 0) x = tanhv(x) * (a.softcap * kLog2e);
      x = select(lanes() + (int32_t)i < (int32_t)n, x, splat(minus_infinity));
      store(s + i, x);
      best = vmax(x, best);
    }
    const float top = std::fmax(out.top[h], greatest(best));
    const bool empty = top == minus_infinity;  // exp2(-inf - -inf) would be NaN
    w.keep[h] = out.top[h] == minus_infinity ? 0.f : std::exp2(out.top[h] - top);
    Vec total = {};
    for (int64_t i = 0; i < n; i += W) {
      const IVec inside = lanes() + (int32_t)i < (int32_t)n;
      const Vec p = select(inside, exp2v(load(s + i) - (empty ? 0.f : top)), Vec{});
      store(s + i, p);
      total += p;
    }
    out.total[h] = out.total[h] * w.keep[h] + sum(total);
    out.top[h] = top;
  }
  dtype = point_at(a.v, a.value_dim, w.v);
  for (int64_t h = 0; h < group;) {
    const float *p = w.s + h * kSlots, *keep = w.keep + h;
    float* o = out.o + h * value_dim;
    if (group - h >= 4) mix<4>(dtype, p, rows, n, keep, o), h += 4;
    else if (group - h == 3) mix<3>(dtype, p, rows, n, keep, o), h += 3;
    else if (group - h == 2) mix<2>(dtype, p, rows, n, keep, o), h += 2;
    else mix<1>(dtype, p, rows, n, keep, o), h += 1;
    rows.bytes = 0;
  }
  return n * group;
}

}  // namespace

LW_EXPORT(decode)(LwDecodeArgs* args) {
  const LwDecodeArgs& a = *args;
  if (a.size != sizeof(LwDecodeArgs)) return LW_BAD_SIZE;
  if (a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads || a.dim < 1 || a.value_dim < 1 || a.length < 0 ||
      a.threads < 1)
    return LW_BAD_SHAPE;
  const int64_t blocks = up(a.length, kSlots) / kSlots, listed = a.page_count < 0 ? blocks : a.page_count;
  if (a.page_count > 0)  // before anything is read
    for (int64_t g = 0; g < (a.page_group ? a.kv_heads : 1); g++)
      for (int64_t i = 0; i < listed; i++) {
        const int32_t page = a.pages[g * a.page_group + i];
        if (page < -1 || page >= blocks) return LW_BAD_BLOCK;
      }
  const int64_t dim = up(a.dim, W), value_dim = up(a.value_dim, W), group = a.heads / a.kv_heads;
  const int64_t units = (listed + kUnit - 1) / kUnit, all = units * a.kv_heads;
  const int64_t threads = a.threads < all ? a.threads : all ? all : 1;
  const int64_t partial_floats = up(group * (value_dim + 2), W);
  const int64_t scratch_floats = kSlots * (dim + value_dim) + up(group * (kSlots + 1), W);
  const int64_t floats = a.heads * dim + all * partial_floats + threads * scratch_floats;
  float* memory = (float*)std::aligned_alloc(64, up(floats * (int64_t)sizeof(float), 64));
  if (!memory) return LW_NO_MEMORY;

  float *q = memory, *partials = q + a.heads * dim, *scratch = partials + all * partial_floats;
  const float factor = a.softcap != 0 ? a.scale / a.softcap : a.scale * kLog2e;
  memset(q, 0, a.heads * dim * sizeof(float));
  memset(scratch, 0, threads * scratch_floats * sizeof(float));  // padding of rows must be 0, not NaN
  for (int64_t h = 0; h < a.heads; h++)
    for (int64_t d = 0; d < a.dim; d++) q[h * dim + d] = a.q[h * a.dim + d] * factor;

  auto partial = [&](int64_t unit) {
    float* p = partials + unit * partial_floats;
    return Partial{p, p + group * value_dim, p + group * (value_dim + 1)};
  };
  int64_t pairs = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(+ : pairs) if (threads > 1)
  for (int64_t unit = 0; unit < all; unit++) {
    const int64_t head = unit / units, first = unit % units * kUnit;
    const int64_t last = first + kUnit < listed ? first + kUnit : listed;
    const Partial out = partial(unit);
    memset(out.o, 0, partial_floats * sizeof(float));
    for (int64_t h = 0; h < group; h++) out.top[h] = -INFINITY;
    float* s = scratch + thread_number() * scratch_floats;
    const Scratch w{s, s + kSlots * dim, s + kSlots * (dim + value_dim),
                    s + kSlots * (dim + value_dim) + group * kSlots};
    auto page_at = [&](int64_t i) -> int64_t { return a.page_count < 0 ? i : a.pages[head * a.page_group + i]; };
    for (int64_t i = first; i < last; i++) {
      const int64_t page = page_at(i), next = i + 1 < last ? page_at(i + 1) : -1;
      if (page >= 0)
        pairs += page_into(a, q + head * group * dim, head, page, next, w, out);
    }
  }

  for (int64_t h = 0; h < a.heads; h++) {
    const int64_t head = h / group, g = h % group;
    float top = -INFINITY, total = 0;
    float* out = a.out + h * a.value_dim;
    memset(out, 0, a.value_dim * sizeof(float));
    for (int64_t u = 0; u < units; u++) top = std::fmax(top, partial(head * units + u).top[g]);
    for (int64_t u = 0; u < units; u++) {
      const Partial p = partial(head * units + u);
      const float weight = std::exp2(p.top[g] - (top == -INFINITY ? 0.f : top));  // 0 where it saw nothing
      total += weight * p.total[g];
      for (int64_t d = 0; d < a.value_dim; d++) out[d] += weight * p.o[g * value_dim + d];
    }
    a.lse[h] = total == 0 ? -INFINITY : (top + std::log2(total)) * kLn2;
    for (int64_t d = 0; d < a.value_dim && total != 0; d++) out[d] /= total;
  }
  free(memory);
  args->pairs = pairs;
  return LW_OK;
}
