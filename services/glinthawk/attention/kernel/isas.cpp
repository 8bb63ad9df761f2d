#include "isas.hpp"

namespace glinthawk {

const Isa* find_isa(const std::string& name) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  if (name == "avx512" && has_avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return isa_avx512();
  }
  if (name == "avx2" && has_avx2) {
    return isa_avx2();
  }
#endif
  if (name == "portable") {
    return isa_portable();
  }
  return name == "portable16" ? isa_portable16() : nullptr;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const char* name : {"avx512", "avx2", "portable", "portable16"}) {
    if (find_isa(name) != nullptr) {
      names.emplace_back(name);
    }
  }
  return names;
}

}  // namespace glinthawk
