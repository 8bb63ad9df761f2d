// The algorithm on emulated vectors of width 16.
#include <cstring>

#include "api.hpp"

#define GLINTHAWK_WIDTH 16

namespace glinthawk {
namespace portable16 {
#include "simd_portable.hpp"
#include "algorithm.hpp"
constexpr Isa kIsa = make_isa("portable16");
}  // namespace portable16

const Isa* isa_portable16() { return &portable16::kIsa; }

}  // namespace glinthawk
