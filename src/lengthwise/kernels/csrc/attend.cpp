// Exact attention of blocks of queries over lists of key blocks: FlashAttention's online softmax (arXiv 2205.14135),
// transposed. Scores are kept as S^T [key][query] and the output as O^T [channel][query], so that the lanes of a vector
// are queries: maxima, sums and masks need no work across lanes, and keys and values are read as they lie.
//
// One unit of work is a tile of 64 queries of some heads of a GQA group: a key block is packed once for all of them.
#include "attend_args.h"
#include "attend_pack.h"
#include "scores.h"

namespace {

constexpr float kLn2 = 0.6931471805599453f;
constexpr float kSlack = 8.f;     // the maximum may lag by 2^8 before sums are rescaled: that is rare, and exact

// Where the pieces of a thread's scratch lie, in bytes.
template <class Unit>
struct Layout {
  int64_t heads;  // of a unit of work
  int64_t q_size, o_size, q, o, maxima, sums, keys, values, swap, scores, weights, bytes;

  Layout(const AttendArgs& a, bool shared) {
    typedef Packing<Unit> P;
    const int64_t depth = P::depth(a.dim), value_rows = P::value_rows(a.value_dim);
    q_size = depth * kCols * sizeof(Unit);
    o_size = value_rows * kCols * sizeof(float);
    const int64_t cache = 512 * 1024;  // queries and outputs of a unit should stay in a level-2 cache
    const int64_t fit = most(1, cache / (a.frames * q_size + o_size));
    heads = shared ? least(fit, a.heads / a.kv_heads) : 1;
    bytes = 0;
    q = take(heads * a.frames * q_size);
    o = take(heads * o_size);
    maxima = take(heads * kCols * sizeof(float));
    sums = take(heads * kCols * sizeof(float));
    keys = take(kSlots * depth * sizeof(Unit));
    values = take(P::kDepth * value_rows * sizeof(Unit));
    swap = take(P::kTiled ? P::kDepth * value_rows * sizeof(Unit) : 0);
    scores = take(kSlots * kCols * sizeof(float));
    weights = take(P::kDepth * kCols * sizeof(Unit));
  }

 private:
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += (size + 63) / 64 * 64;
    return at;
  }
};

LW_INLINE void store_weights(float* to, int64_t s, int64_t c, Vec even, Vec odd) {
  store(to + s * kCols + c, even);
  store(to + (s + 1) * kCols + c, odd);
}
#if LW_PAIRS
LW_INLINE void store_weights(Pair* to, int64_t s, int64_t c, Vec even, Vec odd) {
  // bfloat16 of 16 even and 16 odd slots side by side, then shuffled into pairs
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  _mm512_storeu_si512(to + s / 2 * kCols + c, _mm512_permutexvar_epi16(_mm512_load_si512(order), both));
}
#endif

// Online softmax of one head: scores to weights 2^(factor score - maximum), sums and outputs rescaled where the maximum grew.
template <class Unit>
void soften(const float* scores, Unit* weights, float* maxima, float* sums, float* o, int64_t channels, int64_t cols,
            float factor) {
  for (int64_t c = 0; c < cols; c += W) {
    const float* column = scores + c;
    Vec top[4];
    for (int i = 0; i < 4; i++) top[i] = load(column + i * kCols);
    for (int64_t s = 4; s < kSlots; s += 4)
      for (int i = 0; i < 4; i++) top[i] = vmax(top[i], load(column + (s + i) * kCols));
    const Vec greatest = vmax(vmax(top[0], top[1]), vmax(top[2], top[3])) * factor;
    Vec maximum = load(maxima + c), total = load(sums + c);
    if (any(greatest > maximum + kSlack)) {
      const Vec grown = vmax(maximum, greatest), shrink = exp2v(maximum - grown);
      maximum = grown;
      store(maxima + c, grown);
      total *= shrink;
      for (int64_t d = 0; d < channels; d++) {
        float* at = o + d * kCols + c;
        store(at, load(at) * shrink);
      }
    }
    Vec total_odd = Vec{};
    for (int64_t s = 0; s < kSlots; s += 2) {
      const Vec even = exp2v(load(column + s * kCols) * factor - maximum);
      const Vec odd = exp2v(load(column + (s + 1) * kCols) * factor - maximum);
      total += even;
      total_odd += odd;
      store_weights(weights, s, c, even, odd);
    }
    store(sums + c, total + total_odd);
  }
}

// Normalised outputs and logsumexp of one head's tile.
inline void finish(const AttendArgs& a, int64_t head, int64_t first, int64_t n, const float* o, const float* maxima,
                   const float* sums) {
  float row[256];
  for (int64_t c = 0; c < n; c++) {
    const bool saw = maxima[c] != kNever;
    const float share = saw ? 1.f / sums[c] : 0.f;
    for (int64_t d = 0; d < a.value_dim; d++) row[d] = saw ? o[d * kCols + c] * share : 0.f;
    const int64_t at = head * a.rows + first + c;
    store_row(a.out_dtype, (char*)a.out + at * a.value_dim * dtype_size(a.out_dtype), row, a.value_dim);
    a.lse[at] = saw ? (maxima[c] + log2f(sums[c])) * kLn2 : -INFINITY;
  }
}

// What a tile reads: blocks (of all slots in order where `block` is null), then single slots.
struct Listed {
  const int32_t* block;
  int64_t blocks;
  const int32_t* column;
  int64_t columns;
};

// The tile of queries from `first` of heads [head, head + heads), which share KV head and list.
template <class Unit>
int64_t attend_tile(const AttendArgs& a, const Layout<Unit>& at, char* scratch, int64_t head, int64_t heads,
                    int64_t first, const Listed& list) {
  typedef Packing<Unit> P;
  const int64_t n = least(kCols, a.rows - first), cols = (n + W - 1) / W * W;
  const int64_t kv_head = head / (a.heads / a.kv_heads), depth = P::depth(a.dim);
  const int64_t channels = P::value_rows(a.value_dim), value_stride = P::kTiled ? P::kDepth : channels;
  float *maxima = (float*)(scratch + at.maxima), *sums = (float*)(scratch + at.sums);
  float *scores = (float*)(scratch + at.scores), *o = (float*)(scratch + at.o);
  Unit *keys = (Unit*)(scratch + at.keys), *values = (Unit*)(scratch + at.values);
  Unit* weights = (Unit*)(scratch + at.weights);
  const float factor = (a.softcap > 0 ? a.softcap : a.scale) * kLog2e;
  const int64_t* q_positions = a.q_positions + first;

  for (int64_t h = 0; h < heads; h++)
    for (int f = 0; f < a.frames; f++)
      pack_queries(a.q[f], head + h, first, n, a.dim, (Unit*)(scratch + at.q + (h * a.frames + f) * at.q_size));
  for (int64_t i = 0; i < heads * kCols; i++) maxima[i] = kNever, sums[i] = 0;
  memset(o, 0, heads * at.o_size);

  int64_t pairs = 0;
  for (int64_t i = 0; i < list.blocks + (list.columns + kSlots - 1) / kSlots; i++) {
    int32_t slots[kSlots];
    int64_t at_columns[kSlots];
    const int64_t* k_positions = at_columns;
    int64_t kn;
    if (i < list.blocks) {
      const int64_t token = (list.block ? list.block[i] : i) * kSlots;
      k_positions = a.k_positions + token;
      kn = least(kSlots, a.slots - token);
      if (!list.block && k_positions[0] > q_positions[n - 1]) break;  // positions ascend: the rest lies ahead
      for (int64_t s = 0; s < kn; s++) slots[s] = (int32_t)(token + s);
    } else {
      const int64_t from = (i - list.blocks) * kSlots;
      kn = least(kSlots, list.columns - from);
      for (int64_t s = 0; s < kn; s++) slots[s] = list.column[from + s], at_columns[s] = a.k_positions[slots[s]];
    }
    Sight seen[kMaxFrames];
    Range range[kMaxFrames][kSlots];
    bool live[kSlots] = {}, needed = false;
    for (int f = 0; f < a.frames; f++) {
      seen[f] = sight(a, f, q_positions, n, k_positions, kn);
      if (seen[f] == kNone) continue;
      if (seen[f] == kAll && kn == kSlots) {
        pairs += heads * n * kn;
        memset(live, true, sizeof live);
      } else {
        const int64_t found = ranges(a, f, q_positions, n, k_positions, kn, range[f]);
        seen[f] = found ? kSome : kNone;
        pairs += heads * found;
        for (int64_t s = 0; s < kSlots; s++) live[s] |= range[f][s].stop > 0;
      }
      needed |= seen[f] != kNone;
    }
    if (!needed) continue;
    P::values(a.v, kv_head, slots, a.value_dim, live, values, (Unit*)(scratch + at.swap));
    for (int f = 0; f < a.frames; f++) {
      if (seen[f] == kNone) continue;
      pack_keys(a.k[f], kv_head, slots, kn, a.dim, keys);
      for (int64_t h = 0; h < heads; h++) {
        const Unit* q = (const Unit*)(scratch + at.q + (h * a.frames + f) * at.q_size);
        float* oh = o + h * (at.o_size / sizeof(float));
        multiply<Unit, false>(keys, depth, q, scores, kSlots, cols, depth);
        if (a.softcap > 0) cap_scores(scores, cols, a.scale / a.softcap);
        if (seen[f] == kSome) mask_scores(scores, range[f], cols);
        soften(scores, weights, maxima + h * kCols, sums + h * kCols, oh, channels, cols, factor);
        multiply<Unit, true>(values, value_stride, weights, oh, channels, cols, P::kDepth);
      }
    }
  }
  for (int64_t h = 0; h < heads; h++)
    finish(a, head + h, first, n, o + h * (at.o_size / sizeof(float)), maxima + h * kCols, sums + h * kCols);
  return pairs;
}

struct Work {
  int64_t cost, head, heads, tile;
};

// Longest first, so that the threads end together. (qsort, since a template could be shared: see vec.h.)
int longer(const void* a, const void* b) {
  const Work *x = (const Work*)a, *y = (const Work*)b;
  if (x->cost != y->cost) return x->cost > y->cost ? -1 : 1;
  if (x->head != y->head) return x->head < y->head ? -1 : 1;
  return x->tile < y->tile ? -1 : x->tile > y->tile;
}

template <class Unit>
int32_t attend_all(AttendArgs& a) {
  const Layout<Unit> layout(a, !a.offsets || a.groups != a.heads);
  const int64_t group = a.heads / a.kv_heads, tiles = (a.rows + kCols - 1) / kCols;
  const int64_t blocks = (a.slots + kSlots - 1) / kSlots, parts = (group + layout.heads - 1) / layout.heads;
  const int64_t count = a.kv_heads * parts * tiles;
  const int64_t threads = most(1, least(a.threads, count));
  Work* work = (Work*)malloc(most(1, count) * sizeof(Work));
  char* scratch = (char*)aligned_alloc(64, threads * layout.bytes);
  if (!work || !scratch) {
    free(work);
    free(scratch);
    return LW_NO_MEMORY;
  }
  const int64_t rows_of_lists = a.offsets ? (a.rows + a.query_block - 1) / a.query_block + 1 : 0;
  auto list_of = [&](int64_t head, int64_t tile) {
    if (!a.offsets) return Listed{nullptr, blocks, nullptr, 0};
    const int64_t at = head * a.groups / a.heads * rows_of_lists + tile * kCols / a.query_block;
    Listed list = {a.blocks + a.offsets[at], a.offsets[at + 1] - a.offsets[at], nullptr, 0};
    if (a.column_offsets) {
      list.column = a.columns + a.column_offsets[at];
      list.columns = a.column_offsets[at + 1] - a.column_offsets[at];
    }
    return list;
  };
  int64_t filled = 0, ahead = 0;  // `ahead`: slots at or before the last query of a tile
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t last = a.q_positions[least(a.rows, (tile + 1) * kCols) - 1];
    while (ahead < a.slots && a.k_positions[ahead] <= last) ahead++;
    for (int64_t head = 0; head < a.heads;) {
      const int64_t heads = least(layout.heads, group - head % group);
      const Listed list = list_of(head, tile);
      work[filled++] = {heads * (a.offsets ? list.blocks + list.columns / kSlots : ahead / kSlots), head, heads, tile};
      head += heads;
    }
  }
  qsort(work, filled, sizeof(Work), longer);
  int64_t pairs = 0;
#pragma omp parallel num_threads((int)threads) reduction(+ : pairs)
  {
#if LW_TILES
    tiles_begin();
#endif
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < filled; i++) {
      const Work& w = work[i];
      pairs += attend_tile<Unit>(a, layout, scratch + thread_number() * layout.bytes, w.head, w.heads, w.tile * kCols,
                                 list_of(w.head, w.tile));
    }
#if LW_TILES
    tiles_end();
#endif
  }
  free(work);
  free(scratch);
  a.pairs = pairs;
  return LW_OK;
}

}  // namespace

LW_EXPORT(attend)(AttendArgs* a) {
  if (const int32_t error = check(*a)) return error;
#if LW_PAIRS
  if (a->q[0].dtype == LW_BF16) return attend_all<Pair>(*a);
#endif
  return attend_all<float>(*a);
}
