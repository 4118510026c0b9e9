// What crosses the C boundary: error codes, dtypes, lanes, and the name of an exported function.
// Everything here is mirrored in library.py; each op's own Args struct is mirrored beside its Python wrapper.
#pragma once
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

#ifndef LW_ISA  // set by the build, one value for each object
#define LW_ISA portable
#endif

#define LW_CAT2(a, b, c, d) a##b##c##d
#define LW_CAT(a, b, c, d) LW_CAT2(a, b, c, d)
// extern "C" int32_t lw_<op>_<isa>
#define LW_EXPORT(op) extern "C" __attribute__((visibility("default"))) int32_t LW_CAT(lw_, op, _, LW_ISA)

enum LwError : int32_t {
  LW_OK = 0,
  LW_BAD_SIZE = -1,      // the Args struct of the caller is another one
  LW_BAD_DTYPE = -2,     // a dtype, or a mix of dtypes, that this op does not read
  LW_BAD_BLOCK = -3,     // a block id outside the lane
  LW_REPEATED = -4,      // a block id twice in one list
  LW_BAD_OFFSETS = -5,   // offsets that do not ascend from 0 to the number of block ids
  LW_NO_MEMORY = -6,     // scratch could not be had
  LW_BAD_SHAPE = -7,     // a size that is negative or larger than this op takes
};

enum LwDtype : int32_t { LW_F32 = 0, LW_BF16 = 1, LW_F16 = 2, LW_CODES = 3 };

// A tensor [H, S, D] with element stride 1 in D; strides in elements. dtype LW_CODES: `data` is uint8 and
// x = low + step * code, low and step float16 [H, S, D / group].
struct LwLane {
  const void* data;
  const void* low;
  const void* step;
  int64_t head, token;
  int64_t low_head, low_token;
  int64_t step_head, step_token;
  int32_t dtype, group;
};

constexpr int64_t kSlots = 64;  // slots of a key block

namespace {

inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace
