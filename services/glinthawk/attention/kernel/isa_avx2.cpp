// The algorithm on AVX2. Null where this file was compiled without its machine flags.
#include <cstring>

#include "api.hpp"

#if defined(__AVX2__)
#include <immintrin.h>

namespace glinthawk {
namespace avx2 {
#include "simd_avx2.hpp"
#include "algorithm.hpp"
constexpr Isa kIsa = make_isa("avx2");
}  // namespace avx2

const Isa* isa_avx2() { return &avx2::kIsa; }

}  // namespace glinthawk
#else
namespace glinthawk {
const Isa* isa_avx2() { return nullptr; }
}  // namespace glinthawk
#endif
