// The algorithm on emulated vectors of width 8.
#include <cstring>

#include "api.hpp"

#define GLINTHAWK_WIDTH 8

namespace glinthawk {
namespace portable {
#include "simd_portable.hpp"
#include "algorithm.hpp"
constexpr Isa kIsa = make_isa("portable");
}  // namespace portable

const Isa* isa_portable() { return &portable::kIsa; }

}  // namespace glinthawk
