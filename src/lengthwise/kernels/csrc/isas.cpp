// Which instruction sets this CPU, and this process, may use. Compiled without instruction-set flags.
#include <cstdint>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

#if defined(__x86_64__)
bool cpu_has_amx() {  // leaf 7: EDX bit 22 AMX-BF16, 24 AMX-TILE, 25 AMX-INT8
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned wanted = 1u << 22 | 1u << 24 | 1u << 25;
  return (d & wanted) == wanted;
}

bool cpu_has_avx512_bf16() {  // leaf 7, subleaf 1: EAX bit 5
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5);
}

bool may_use_tiles() {  // Linux gives a process the tile registers only when it asks
#if defined(__linux__)
  const long arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

// Bit i is the i-th of portable, avx2, avx512, avx512bf16, amx, neon (ISAS in build.py).
extern "C" __attribute__((visibility("default"))) uint32_t lw_isas() {
  uint32_t have = 1;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return have;
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
  if (!f16c) return have;
  have |= 1u << 1;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return have;
  have |= 1u << 2;
  if (!cpu_has_avx512_bf16()) return have;
  have |= 1u << 3;
  if (cpu_has_amx() && may_use_tiles()) have |= 1u << 4;
#elif defined(__aarch64__)
  have |= 1u << 5;
#endif
  return have;
}
