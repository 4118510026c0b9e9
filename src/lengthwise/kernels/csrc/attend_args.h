// The arguments of `attend` and what can be wrong with them. Mirrored in attend/cpu.py.
#pragma once
#include <cstdlib>

#include "dtype.h"
#include "scores.h"

namespace {

constexpr int kMaxFrames = 4, kMaxRules = 8;

struct AttendArgs {
  int64_t size;
  LwLane q[kMaxFrames], k[kMaxFrames], v;
  const int64_t *q_positions, *k_positions;  // ascending
  const int64_t* offsets;                    // [groups, query blocks + 1], null: every block
  const int32_t* blocks;                     // [listed]
  const int64_t* column_offsets;             // as offsets, null: none
  const int32_t* columns;                    // [columned] slots, ascending in every list, outside its blocks
  void* out;                                 // [heads, rows, value_dim], contiguous
  float* lse;                                // [heads, rows]
  int64_t low[kMaxFrames], high[kMaxFrames];
  int64_t window[kMaxRules], sinks[kMaxRules];
  int64_t heads, kv_heads, rows, slots, dim, value_dim;
  int64_t groups, query_block, listed, columned;
  int64_t pairs;  // result
  float scale, softcap;  // softcap 0: none
  int32_t frames, rules, threads, out_dtype;
};

inline int32_t check_lists(const AttendArgs& a) {
  const int64_t lists = (a.rows + a.query_block - 1) / a.query_block, ids = (a.slots + kSlots - 1) / kSlots;
  int64_t* last = (int64_t*)malloc((ids + 1) * sizeof(int64_t));  // the last list that named a block
  if (!last) return LW_NO_MEMORY;
  for (int64_t i = 0; i < ids; i++) last[i] = -1;
  int64_t at = 0, column = 0;
  int32_t error = LW_OK;
  for (int64_t i = 0; i < a.groups * lists && !error; i++) {
    const int64_t place = i / lists * (lists + 1) + i % lists, *offset = a.offsets + place;
    if (offset[0] != at || offset[1] < at || offset[1] > a.listed) {
      error = LW_BAD_OFFSETS;
      break;
    }
    for (; at < offset[1] && !error; at++) {
      const int32_t id = a.blocks[at];
      if (id < 0 || id >= ids)
        error = LW_BAD_BLOCK;
      else if (last[id] == i)
        error = LW_REPEATED;
      else
        last[id] = i;
    }
    if (error || !a.column_offsets) continue;
    offset = a.column_offsets + place;
    if (offset[0] != column || offset[1] < column || offset[1] > a.columned) error = LW_BAD_OFFSETS;
    for (; !error && column < offset[1]; column++) {
      const int32_t slot = a.columns[column];
      if (slot < 0 || slot >= a.slots)
        error = LW_BAD_BLOCK;
      else if (last[slot / kSlots] == i || (column > offset[0] && slot <= a.columns[column - 1]))
        error = LW_REPEATED;
    }
  }
  if (!error && (at != a.listed || column != (a.column_offsets ? a.columned : 0))) error = LW_BAD_OFFSETS;
  free(last);
  return error;
}

inline int32_t check(const AttendArgs& a) {
  if (a.size != sizeof(AttendArgs)) return LW_BAD_SIZE;
  if (a.frames < 1 || a.frames > kMaxFrames || a.rules < 0 || a.rules > kMaxRules || a.threads < 1) return LW_BAD_SHAPE;
  if (a.dim < 1 || a.dim > 256 || a.value_dim < 1 || a.value_dim > 256 || a.rows < 0 || a.slots < 0) return LW_BAD_SHAPE;
  if (a.kv_heads < 1 || a.heads < 1 || a.heads % a.kv_heads) return LW_BAD_SHAPE;
  const int32_t dtype = a.q[0].dtype;
  if (dtype < LW_F32 || dtype > LW_F16 || a.out_dtype != dtype) return LW_BAD_DTYPE;
  for (int f = 0; f < a.frames; f++) {
    if (a.q[f].dtype != dtype || a.k[f].dtype != a.k[0].dtype) return LW_BAD_DTYPE;
    if (a.k[f].dtype == LW_CODES && a.k[f].group < 1) return LW_BAD_SHAPE;
  }
  if (a.k[0].dtype != dtype && a.k[0].dtype != LW_CODES) return LW_BAD_DTYPE;
  if (a.v.dtype != dtype && a.v.dtype != LW_CODES) return LW_BAD_DTYPE;
  if (a.v.dtype == LW_CODES && a.v.group < 1) return LW_BAD_SHAPE;
  if (!a.offsets) return LW_OK;
  if ((a.groups != 1 && a.groups != a.kv_heads && a.groups != a.heads) || a.query_block < kCols || a.query_block % kCols)
    return LW_BAD_SHAPE;
  return check_lists(a);
}

enum Sight { kNone, kSome, kAll };

// What a tile of queries at positions q[0..n) sees of the keys at k[0..kn) in frame f.
inline Sight sight(const AttendArgs& a, int f, const int64_t* q, int64_t n, const int64_t* k, int64_t kn) {
  const int64_t low = a.low[f] > 0 ? a.low[f] : 0, high = a.high[f];
  const int64_t nearest = q[0] - k[kn - 1], farthest = q[n - 1] - k[0];
  if (farthest < low || nearest >= high) return kNone;
  bool all = nearest >= low && farthest < high;
  for (int r = 0; r < a.rules; r++) {
    if (nearest >= a.window[r] && k[0] >= a.sinks[r]) return kNone;
    all = all && (farthest < a.window[r] || k[kn - 1] < a.sinks[r]);
  }
  return all ? kAll : kSome;
}

// As `sight`, slot by slot; returns the number of (query, key) pairs.
inline int64_t ranges(const AttendArgs& a, int f, const int64_t* q, int64_t n, const int64_t* k, int64_t kn, Range* out) {
  const int64_t low = a.low[f] > 0 ? a.low[f] : 0;
  int64_t pairs = 0;
  for (int64_t s = 0; s < kn; s++) {
    int64_t high = a.high[f];
    for (int r = 0; r < a.rules; r++)
      if (k[s] >= a.sinks[r] && a.window[r] < high) high = a.window[r];
    int32_t first = 0, stop = 0;  // counts of queries nearer than low, and nearer than high
    for (int64_t i = 0; i < n; i++) {
      first += q[i] - k[s] < low;
      stop += q[i] - k[s] < high;
    }
    out[s] = first < stop ? Range{first, stop} : Range{0, 0};
    pairs += out[s].stop - out[s].first;
  }
  for (int64_t s = kn; s < kSlots; s++) out[s] = Range{0, 0};
  return pairs;
}

}  // namespace
