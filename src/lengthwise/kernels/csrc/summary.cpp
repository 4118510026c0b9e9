// Summaries of blocks of 64 keys (mean and bounds), and the choice of the blocks whose summaries fit queries best.
#include <algorithm>
#include <cstdlib>
#include <utility>

#include "dtype.h"

struct LwSummaryArgs {
  int64_t size;
  LwLane k;                // [heads, length, dim]
  LwLane mean, low, high;  // written, [heads, blocks from start_block on, dim]: float32, and twice k's dtype
  int64_t heads, dim, length, start_block, threads;
};

struct LwTopBlocksArgs {
  int64_t size;
  LwLane q;              // [heads, queries, dim]
  LwLane first, second;  // [kv_heads, blocks, dim]: mean and nothing, or upper and lower bounds
  const int64_t* limits;   // [query blocks]: blocks 0..limit-1 may be chosen
  const int64_t* offsets;  // [lists of heads, query blocks + 1]: where each list goes in `chosen`
  int32_t* chosen;
  int64_t lists, heads, kv_heads, queries, query_block, blocks, dim;
  int64_t count, sinks, local;  // best blocks, and those at both ends that are always taken
  int64_t threads;
};

namespace {

constexpr int kRows = kRegisters >= 32 ? 6 : 2;  // blocks scored at once
constexpr int kColumns = 4;                      // vectors of queries scored at once
constexpr int kFew = W / 2;                      // queries that are scored along the channels

LW_INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
LW_INLINE Vec spread(float x) { return x - Vec{}; }  // 0 + x would be an addition: it turns -0 into 0

void* row_of(const LwLane& lane, int64_t head, int64_t token) {
  return (char*)lane.data + (head * lane.head + token * lane.token) * dtype_size(lane.dtype);
}

void summarize(const LwSummaryArgs& a, int64_t head, int64_t block, float* row, float* mean, float* low, float* high) {
  const int64_t start = block * kSlots, stop = std::min(start + kSlots, a.length), dim = up(a.dim, W);
  for (int64_t d = 0; d < dim; d++) mean[d] = 0, low[d] = INFINITY, high[d] = -INFINITY;
  for (int64_t slot = start; slot < stop; slot++) {
    load_row(a.k, head, slot, a.dim, row);
    for (int64_t d = 0; d < dim; d += W) {
      const Vec x = load(row + d);
      store(mean + d, load(mean + d) + x);
      store(low + d, vmin(x, load(low + d)));
      store(high + d, vmax(x, load(high + d)));
    }
  }
  for (int64_t d = 0; d < dim; d++) mean[d] /= (float)(stop - start);
  const int64_t at = block - a.start_block;
  store_row(LW_F32, row_of(a.mean, head, at), mean, a.dim);
  store_row(a.low.dtype, row_of(a.low, head, at), low, a.dim);
  store_row(a.high.dtype, row_of(a.high, head, at), high, a.dim);
}

// best[r] = max(best[r], max over columns c of sum_d rows[r][d] q[d][c]) for M rows and N vectors of columns.
template <int M, int N>
LW_INLINE void raise(const float* const* rows, const float* q, int64_t depth, float* best) {
  Vec acc[M][N] = {};
  for (int64_t d = 0; d < depth; d++) {
    Vec y[N];
    for (int c = 0; c < N; c++) y[c] = load(q + (d * N + c) * W);
    for (int r = 0; r < M; r++) {
      const Vec x = spread(rows[r][d]);
      for (int c = 0; c < N; c++) acc[r][c] = fma(x, y[c], acc[r][c]);
    }
  }
  for (int r = 0; r < M; r++) {
    Vec most = spread(-INFINITY);
    for (int c = 0; c < N; c++) most = vmax(acc[r][c], most);  // drops NaN
    best[r] = std::max(best[r], greatest(most));
  }
}

template <int N>
void raise_all(const LwTopBlocksArgs& a, int64_t head, int64_t from, int64_t to, const float* q, float* rows,
               float* best) {
  const bool bounds = a.second.data != nullptr;
  const int64_t depth = bounds ? 2 * a.dim : a.dim;
  for (int64_t b = from; b < to; b += kRows) {
    const int64_t n = std::min<int64_t>(kRows, to - b);
    const float* at[kRows];
    for (int64_t r = 0; r < n; r++) {
      float* row = rows + r * depth;
      load_row(a.first, head, b + r, a.dim, row);
      if (bounds) load_row(a.second, head, b + r, a.dim, row + a.dim);
      at[r] = row;
    }
    if (n == kRows) {
      raise<kRows, N>(at, q, depth, best + b);
    } else {
      for (int64_t r = 0; r < n; r++) raise<1, N>(at + r, q, depth, best + b + r);
    }
  }
}

// As `raise_all` for a few queries q [columns][stride], along the channels: as columns they would leave most of a vector
// empty. `row` has `stride` places.
void raise_few(const LwTopBlocksArgs& a, int64_t head, int64_t from, int64_t to, int64_t columns, const float* q,
               int64_t stride, float* row, float* best) {
  const bool bounds = a.second.data != nullptr;
  const int64_t depth = bounds ? 2 * a.dim : a.dim;
  for (int64_t b = from; b < to; b++) {
    load_row(a.first, head, b, a.dim, row);
    if (bounds) load_row(a.second, head, b, a.dim, row + a.dim);
    for (int64_t d = depth; d < stride; d++) row[d] = 0;
    for (int64_t c = 0; c < columns; c++) {
      Vec acc = {};
      for (int64_t d = 0; d < stride; d += W) acc = fma(load(row + d), load(q + c * stride + d), acc);
      best[b] = std::max(best[b], sum(acc));  // drops NaN
    }
  }
}

// One query as `pack` splits it, as [stride].
void pack_one(const LwTopBlocksArgs& a, int64_t head, int64_t token, int64_t stride, float* row, float* q) {
  load_row(a.q, head, token, a.dim, row);
  for (int64_t d = 0; d < stride; d++) q[d] = 0;
  for (int64_t d = 0; d < a.dim; d++) {
    q[d] = a.second.data ? (row[d] < 0 ? 0.f : row[d]) : row[d];
    if (a.second.data) q[a.dim + d] = row[d] < 0 ? row[d] : 0.f;
  }
}

// `columns` queries, from number `from` of those of a list and query block on, as [depth][n vectors of W]. For bounds
// max(q low, q high) = max(q, 0) high + min(q, 0) low: the positive parts first, then the negative ones.
void pack(const LwTopBlocksArgs& a, int64_t first_head, int64_t start, int64_t width, int64_t from, int64_t columns,
          int64_t vectors, float* row, float* q) {
  const int64_t stride = vectors * W;
  for (int64_t c = 0; c < stride; c++) {
    const int64_t i = from + std::min(c, columns - 1);  // spare columns repeat the last query: the maximum stays
    load_row(a.q, first_head + i / width, start + i % width, a.dim, row);
    for (int64_t d = 0; d < a.dim; d++) {
      q[d * stride + c] = a.second.data ? (row[d] < 0 ? 0.f : row[d]) : row[d];
      if (a.second.data) q[(a.dim + d) * stride + c] = row[d] < 0 ? row[d] : 0.f;
    }
  }
}

struct Scratch {
  float *row, *q, *rows, *best;
  int32_t* ids;
};

void choose(const LwTopBlocksArgs& a, int64_t list, int64_t query_block, const Scratch& w) {
  const int64_t stripes = (a.queries + a.query_block - 1) / a.query_block;
  int32_t* out = a.chosen + a.offsets[list * (stripes + 1) + query_block];
  const int64_t limit = a.limits[query_block], always = std::min(limit, a.sinks + a.local);
  const int64_t from = std::min(a.sinks, limit), to = from + (limit - always);
  const int64_t take = std::min(a.count, to - from);
  for (int64_t b = 0; b < from; b++) *out++ = (int32_t)b;
  if (take == to - from) {
    for (int64_t b = from; b < to; b++) *out++ = (int32_t)b;
  } else if (take > 0) {
    const int64_t heads = a.heads / a.lists, first_head = list * heads, kv_head = first_head / (a.heads / a.kv_heads);
    const int64_t start = query_block * a.query_block, width = std::min(a.query_block, a.queries - start);
    const int64_t all = heads * width;
    std::fill(w.best + from, w.best + to, -INFINITY);
    const int64_t stride = up(a.second.data ? 2 * a.dim : a.dim, W);
    if (all <= kFew) {
      for (int64_t c = 0; c < all; c++)
        pack_one(a, first_head + c / width, start + c % width, stride, w.row, w.q + c * stride);
      raise_few(a, kv_head, from, to, all, w.q, stride, w.rows, w.best);
    }
    for (int64_t c = all <= kFew ? all : 0; c < all;) {
      const int64_t left = all - c;
      if (left > W) {
        pack(a, first_head, start, width, c, std::min<int64_t>(left, kColumns * W), kColumns, w.row, w.q);
        raise_all<kColumns>(a, kv_head, from, to, w.q, w.rows, w.best);
        c += kColumns * W;
      } else {
        pack(a, first_head, start, width, c, left, 1, w.row, w.q);
        raise_all<1>(a, kv_head, from, to, w.q, w.rows, w.best);
        c += W;
      }
    }
    for (int64_t b = from; b < to; b++) w.ids[b - from] = (int32_t)b;
    const float* best = w.best;
    std::nth_element(w.ids, w.ids + take, w.ids + (to - from), [best](int32_t x, int32_t y) {
      return best[x] > best[y] || (best[x] == best[y] && x < y);
    });
    std::sort(w.ids, w.ids + take);
    out = std::copy(w.ids, w.ids + take, out);
  }
  for (int64_t b = to; b < limit; b++) *out++ = (int32_t)b;
}

}  // namespace

LW_EXPORT(summary)(const LwSummaryArgs* args) {
  const LwSummaryArgs& a = *args;
  if (a.size != sizeof(LwSummaryArgs)) return LW_BAD_SIZE;
  if (a.heads < 0 || a.dim < 1 || a.length < 0 || a.start_block < 0 || a.threads < 1) return LW_BAD_SHAPE;
  if (a.k.dtype == LW_CODES || a.mean.dtype != LW_F32 || a.low.dtype != a.k.dtype || a.high.dtype != a.k.dtype)
    return LW_BAD_DTYPE;
  const int64_t fresh = (a.length + kSlots - 1) / kSlots - a.start_block, all = a.heads * fresh;
  if (fresh <= 0) return LW_OK;
  const int64_t threads = std::min(a.threads, all), row = up(a.dim, W);
  float* scratch = (float*)std::aligned_alloc(64, up(threads * 4 * row * (int64_t)sizeof(float), 64));
  if (!scratch) return LW_NO_MEMORY;
  memset(scratch, 0, threads * 4 * row * sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < all; i++) {
    float* s = scratch + thread_number() * 4 * row;
    summarize(a, i / fresh, a.start_block + i % fresh, s, s + row, s + 2 * row, s + 3 * row);
  }
  free(scratch);
  return LW_OK;
}

LW_EXPORT(top_blocks)(const LwTopBlocksArgs* args) {
  const LwTopBlocksArgs& a = *args;
  if (a.size != sizeof(LwTopBlocksArgs)) return LW_BAD_SIZE;
  if (a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads || a.dim < 1 || a.queries < 1 || a.query_block < 1 ||
      (a.lists != a.heads && a.lists != a.kv_heads) || a.count < 0 || a.sinks < 0 || a.local < 0 || a.threads < 1)
    return LW_BAD_SHAPE;
  const int64_t stripes = (a.queries + a.query_block - 1) / a.query_block, all = a.lists * stripes;
  for (int64_t i = 0; i < stripes; i++)
    if (a.limits[i] < 0 || a.limits[i] > a.blocks) return LW_BAD_BLOCK;
  const int64_t threads = std::min(a.threads, all), depth = a.second.data ? 2 * a.dim : a.dim;
  const int64_t row = up(a.dim, W), q = up(depth, W) * kColumns * W, rows = up(kRows * up(depth, W), W), best = up(a.blocks, W);
  const int64_t each = row + q + rows + 2 * best;
  static_assert(sizeof(float) == sizeof(int32_t), "ids lie among floats");
  float* scratch = (float*)std::aligned_alloc(64, up(threads * each * (int64_t)sizeof(float), 64));
  if (!scratch) return LW_NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t i = 0; i < all; i++) {
    float* s = scratch + thread_number() * each;
    const Scratch w{s, s + row, s + row + q, s + row + q + rows, (int32_t*)(s + row + q + rows + best)};
    choose(a, i % a.lists, stripes - 1 - i / a.lists, w);  // the longest first
  }
  free(scratch);
  return LW_OK;
}
