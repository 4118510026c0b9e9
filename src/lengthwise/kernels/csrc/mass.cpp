// Which share of every query's softmax lies in each block of 64 keys: one pass of scores, no values.
// As in attend.cpp, scores are [key][query], 64 queries at a time.
#include <cstdlib>

#include "scores.h"

struct LwMassArgs {
  int64_t size;
  LwLane q, k;                               // [kv_heads, rows, dim] and [kv_heads, slots, dim]
  const int64_t *q_positions, *k_positions;  // ascending
  float* out;                                // [kv_heads, rows, blocks], contiguous
  int64_t kv_heads, rows, slots, dim;
  int64_t pairs;  // result
  float scale, softcap;  // softcap 0: none
  int64_t threads;
};

namespace {

// Of the scores of one block: the maximum of each query, scaled, and the sum of 2^(score - maximum).
void gather(const float* scores, int64_t cols, float factor, float* maxima, float* sums) {
  for (int64_t c = 0; c < cols; c += W) {
    const float* column = scores + c;
    Vec top[4], total[2] = {};
    for (int i = 0; i < 4; i++) top[i] = load(column + i * kCols);
    for (int64_t s = 4; s < kSlots; s += 4)
      for (int i = 0; i < 4; i++) top[i] = vmax(top[i], load(column + (s + i) * kCols));
    // a query that sees none of them has -inf here, and -inf - -inf is not a number
    const Vec maximum = vmax(vmax(vmax(top[0], top[1]), vmax(top[2], top[3])) * factor, splat(kNever));
    for (int64_t s = 0; s < kSlots; s += 2)
      for (int i = 0; i < 2; i++) total[i] += exp2v(load(column + (s + i) * kCols) * factor - maximum);
    store(maxima + c, maximum);
    store(sums + c, total[0] + total[1]);
  }
}

template <class Unit>
int64_t mass_tile(const LwMassArgs& a, int64_t head, int64_t first, char* scratch, int64_t blocks) {
  const int64_t n = least(kCols, a.rows - first), cols = (n + W - 1) / W * W, depth = Packing<Unit>::depth(a.dim);
  Unit *q = (Unit*)scratch, *keys = q + depth * kCols;
  float *scores = (float*)(keys + kSlots * depth), *maxima = scores + kSlots * kCols, *sums = maxima + blocks * kCols;
  const float factor = (a.softcap > 0 ? a.softcap : a.scale) * kLog2e;
  const int64_t* q_positions = a.q_positions + first;
  pack_queries(a.q, head, first, n, a.dim, q);
  int64_t pairs = 0, seen = 0;  // `seen`: blocks that some query sees
  for (; seen < blocks; seen++) {
    const int64_t token = seen * kSlots, kn = least(kSlots, a.slots - token);
    const int64_t* k_positions = a.k_positions + token;
    if (k_positions[0] > q_positions[n - 1]) break;  // positions ascend: the rest lies ahead
    int32_t slots[kSlots];
    for (int64_t s = 0; s < kn; s++) slots[s] = (int32_t)(token + s);
    pack_keys(a.k, head, slots, kn, a.dim, keys);
    multiply<Unit, false>(keys, depth, q, scores, kSlots, cols, depth);
    if (a.softcap > 0) cap_scores(scores, cols, a.scale / a.softcap);
    if (kn == kSlots && k_positions[kn - 1] <= q_positions[0]) {
      pairs += n * kn;
    } else {
      Range range[kSlots];
      int32_t ahead = 0;  // queries that stand before the slot
      for (int64_t s = 0; s < kn; s++) {
        while (ahead < n && q_positions[ahead] < k_positions[s]) ahead++;
        range[s] = ahead < n ? Range{ahead, (int32_t)n} : Range{0, 0};
        pairs += n - ahead;
      }
      for (int64_t s = kn; s < kSlots; s++) range[s] = Range{0, 0};
      mask_scores(scores, range, cols);
    }
    gather(scores, cols, factor, maxima + seen * kCols, sums + seen * kCols);
  }
  for (int64_t c = 0; c < cols; c += W) {
    Vec maximum = splat(kNever), total = {};
    for (int64_t b = 0; b < seen; b++) maximum = vmax(maximum, load(maxima + b * kCols + c));
    for (int64_t b = 0; b < seen; b++) {
      const Vec part = load(sums + b * kCols + c) * exp2v(load(maxima + b * kCols + c) - maximum);
      total += part;
      store(sums + b * kCols + c, part);
    }
    // exp2v of very little is not quite 0; and the maxima of block 0 are not wanted any more
    store(maxima + c, select(maximum > splat(kNever), total, Vec{}));
  }
  for (int64_t c = 0; c < n; c++) {
    float* row = a.out + (head * a.rows + first + c) * blocks;
    const float share = seen && maxima[c] > 0 ? 1.f / maxima[c] : 0.f;
    for (int64_t b = 0; b < seen; b++) row[b] = share > 0 ? sums[b * kCols + c] * share : 0.f;
    for (int64_t b = seen; b < blocks; b++) row[b] = 0.f;
  }
  return pairs;
}

template <class Unit>
int32_t mass_all(LwMassArgs& a) {
  const int64_t blocks = (a.slots + kSlots - 1) / kSlots, tiles = (a.rows + kCols - 1) / kCols;
  const int64_t count = a.kv_heads * tiles, threads = most(1, least(a.threads, count));
  const int64_t depth = Packing<Unit>::depth(a.dim);
  const int64_t each = (kCols + kSlots) * depth * (int64_t)sizeof(Unit) +
                       (kSlots + 2 * most(1, blocks)) * kCols * (int64_t)sizeof(float);  // a multiple of 64 bytes
  char* scratch = (char*)aligned_alloc(64, threads * each);
  if (!scratch) return LW_NO_MEMORY;
  int64_t pairs = 0;
#pragma omp parallel num_threads((int)threads) reduction(+ : pairs)
  {
#if LW_TILES
    tiles_begin();
#endif
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++)  // the longest first
      pairs += mass_tile<Unit>(a, i % a.kv_heads, (tiles - 1 - i / a.kv_heads) * kCols,
                               scratch + thread_number() * each, blocks);
#if LW_TILES
    tiles_end();
#endif
  }
  free(scratch);
  a.pairs = pairs;
  return LW_OK;
}

}  // namespace

LW_EXPORT(block_mass)(LwMassArgs* a) {
  if (a->size != sizeof(LwMassArgs)) return LW_BAD_SIZE;
  if (a->kv_heads < 1 || a->dim < 1 || a->dim > 256 || a->rows < 0 || a->slots < 0 || a->threads < 1)
    return LW_BAD_SHAPE;
  if (a->q.dtype < LW_F32 || a->q.dtype > LW_F16 || a->k.dtype != a->q.dtype) return LW_BAD_DTYPE;
#if LW_PAIRS
  if (a->q.dtype == LW_BF16) return mass_all<Pair>(*a);
#endif
  return mass_all<float>(*a);
}
