// The algorithm on AVX512. Null where this file was compiled without its machine flags.
#include <cstring>

#include "api.hpp"

#if defined(__AVX512BW__)
#include <immintrin.h>

namespace glinthawk {
namespace avx512 {
#include "simd_avx512.hpp"
#include "algorithm.hpp"
constexpr Isa kIsa = make_isa("avx512");
}  // namespace avx512

const Isa* isa_avx512() { return &avx512::kIsa; }

}  // namespace glinthawk
#else
namespace glinthawk {
const Isa* isa_avx512() { return nullptr; }
}  // namespace glinthawk
#endif
