// Which instruction sets this CPU and build have.
#pragma once

#include <string>
#include <vector>

#include "api.hpp"

namespace glinthawk {

// Null where the name is unknown, or this CPU or build lacks it.
const Isa* find_isa(const std::string& name);

// Names, the best first.
std::vector<std::string> supported_isas();

}  // namespace glinthawk
