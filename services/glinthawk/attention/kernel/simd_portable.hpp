// GLINTHAWK_WIDTH floats in plain C++, for any CPU. Included inside the namespace of its
// instruction set. At width 16 it runs the AVX-512 algorithm where there is no AVX-512.
struct Vec {
  static constexpr int kWidth = GLINTHAWK_WIDTH;
  static constexpr int kMaxBlock = kWidth == 16 ? 8 : 4;
  static constexpr int kAccumulators = kWidth == 16 ? 16 : 8;
  float x[kWidth];
};

#define GLINTHAWK_EACH(expression)        \
  Vec r;                                  \
  for (int i = 0; i < Vec::kWidth; ++i) { \
    r.x[i] = (expression);                \
  }                                       \
  return r

static inline Vec zero() { GLINTHAWK_EACH(0.0f); }
static inline Vec broadcast(float a) { GLINTHAWK_EACH(a); }
static inline Vec load(const float* p) { GLINTHAWK_EACH(p[i]); }
static inline void store(float* p, Vec a) { memcpy(p, a.x, sizeof a.x); }
static inline Vec add(Vec a, Vec b) { GLINTHAWK_EACH(a.x[i] + b.x[i]); }
static inline Vec sub(Vec a, Vec b) { GLINTHAWK_EACH(a.x[i] - b.x[i]); }
static inline Vec mul(Vec a, Vec b) { GLINTHAWK_EACH(a.x[i] * b.x[i]); }
static inline Vec max(Vec a, Vec b) { GLINTHAWK_EACH(a.x[i] > b.x[i] ? a.x[i] : b.x[i]); }
static inline Vec fma(Vec a, Vec b, Vec c) { GLINTHAWK_EACH(a.x[i] * b.x[i] + c.x[i]); }
// *a * b + c
static inline Vec fma_at(const float* a, Vec b, Vec c) { return fma(broadcast(*a), b, c); }
// Whether a lane exceeds the limit's or is no number.
static inline bool is_any_above(Vec a, Vec limit) {
  bool is_above = false;
  for (int i = 0; i < Vec::kWidth; ++i) {
    is_above = is_above || !(a.x[i] <= limit.x[i]);
  }
  return is_above;
}
// Adding and taking off 1.5 * 2^23 leaves no fraction (|a| < 2^22).
static inline Vec round_even(Vec a) { GLINTHAWK_EACH((a.x[i] + 12582912.0f) - 12582912.0f); }

static inline float first_of(Vec a) { return a.x[0]; }
// The largest of all lanes, in every lane.
static inline Vec spread_largest(Vec a) {
  float top = a.x[0];
  for (int i = 1; i < Vec::kWidth; ++i) {
    top = a.x[i] > top ? a.x[i] : top;
  }
  GLINTHAWK_EACH(top);
}

static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
static inline Vec scale_two(Vec a, Vec n) {
  // A NaN becomes 0 here; `a` carries it on.
  GLINTHAWK_EACH(a.x[i] * float_of(static_cast<uint32_t>(
      (n.x[i] > -127.0f && n.x[i] < 128.0f ? static_cast<int32_t>(n.x[i]) : 0) + 127) << 23));
}

static inline float widen_half(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7FFFu;
  if (magnitude >= 0x7C00u) {  // infinity, NaN
    return float_of(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  }
  // 2^112 moves the exponent's bias and makes subnormals normal.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 5.192296858534828e33f));
}
static inline uint16_t narrow_half(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) {
    return static_cast<uint16_t>(sign | 0x7E00u | (magnitude >> 13 & 0x1FFu));
  }
  if (magnitude >= 0x477FF000u) {  // rounds to infinity
    return static_cast<uint16_t>(sign | 0x7C00u);
  }
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at the right bit
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xFFFu + odd) >> 13);
}
static inline uint16_t narrow_bfloat(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
    return static_cast<uint16_t>(bits >> 16 | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

template <Format F>
static inline float widen(const char* p, int i) {
  if constexpr (F == Format::kFloat32) {
    float value;
    memcpy(&value, p + 4 * i, 4);
    return value;
  } else {
    uint16_t bits;
    memcpy(&bits, p + 2 * i, 2);
    return F == Format::kFloat16 ? widen_half(bits) : float_of(static_cast<uint32_t>(bits) << 16);
  }
}
template <Format F>
static inline void narrow(char* p, int i, float value) {
  if constexpr (F == Format::kFloat32) {
    memcpy(p + 4 * i, &value, 4);
  } else {
    const uint16_t bits = F == Format::kFloat16 ? narrow_half(value) : narrow_bfloat(value);
    memcpy(p + 2 * i, &bits, 2);
  }
}

template <Format F>
static inline Vec load_as(const char* p) {
  GLINTHAWK_EACH(widen<F>(p, i));
}
// Two vectors of items; they lie in the order of memory here.
template <Format F>
static inline void load_two(const char* p, Vec* x) {
  x[0] = load_as<F>(p);
  x[1] = load_as<F>(p + Vec::kWidth * (F == Format::kFloat32 ? 4 : 2));
}
template <Format F>
static inline void to_memory_order(Vec*) {}
template <Format F>
static inline void from_memory_order(Vec*) {}
template <Format F>
static inline Vec load_eight(const char* p) {
  GLINTHAWK_EACH(i < 8 ? widen<F>(p, i) : 0.0f);
}
template <Format F>
static inline void store_as(char* p, Vec a) {
  for (int i = 0; i < Vec::kWidth; ++i) {
    narrow<F>(p, i, a.x[i]);
  }
}
template <Format F>
static inline void store_eight(char* p, Vec a) {
  for (int i = 0; i < 8; ++i) {
    narrow<F>(p, i, a.x[i]);
  }
}

static inline uint64_t read_memory_loop(const char* p, int64_t n) {
  uint64_t sums[4] = {0, 0, 0, 0};
  for (const char* end = p + n; p < end; p += 32) {
    uint64_t words[4];
    memcpy(words, p, sizeof words);
    for (int i = 0; i < 4; ++i) {
      sums[i] ^= words[i];
    }
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

#undef GLINTHAWK_EACH
