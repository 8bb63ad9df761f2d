// Eight floats on AVX2, FMA and F16C. Included inside the namespace of its instruction set.
struct Vec {
  static constexpr int kWidth = 8;
  static constexpr int kMaxBlock = 4;  // query heads that fit the registers together
  static constexpr int kAccumulators = 8;
  __m256 x;
};

static inline Vec zero() { return {_mm256_setzero_ps()}; }
static inline Vec broadcast(float a) { return {_mm256_set1_ps(a)}; }
static inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.x); }
static inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.x, b.x)}; }
static inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.x, b.x)}; }
static inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.x, b.x)}; }
static inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.x, b.x)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.x, b.x, c.x)}; }
// *a * b + c
static inline Vec fma_at(const float* a, Vec b, Vec c) { return fma(broadcast(*a), b, c); }
// Whether a lane exceeds the limit's or is no number.
static inline bool is_any_above(Vec a, Vec limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.x, limit.x, _CMP_NLE_UQ)) != 0;
}
static inline Vec round_even(Vec a) {
  return {_mm256_round_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline float first_of(Vec a) { return _mm256_cvtss_f32(a.x); }
// The largest of all lanes, in every lane.
static inline Vec spread_largest(Vec a) {
  __m256 m = _mm256_max_ps(a.x, _mm256_permute2f128_ps(a.x, a.x, 1));
  m = _mm256_max_ps(m, _mm256_permute_ps(m, 0x4E));
  return {_mm256_max_ps(m, _mm256_permute_ps(m, 0xB1))};
}
// a * 2^n for whole n from -126 to 127
static inline Vec scale_two(Vec a, Vec n) {
  __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.x), _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(a.x, _mm256_castsi256_ps(e))};
}

template <Format F>
static inline Vec load_as(const char* p) {
  if constexpr (F == Format::kFloat32) {
    return {_mm256_loadu_ps(reinterpret_cast<const float*>(p))};
  } else if constexpr (F == Format::kFloat16) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  } else {
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(w, 16))};
  }
}
// Sixteen items; bf16 as the even ones, then the odd ones, which takes half the work.
template <Format F>
static inline void load_two(const char* p, Vec* x) {
  if constexpr (F == Format::kBFloat16) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    x[0] = {_mm256_castsi256_ps(_mm256_slli_epi32(w, 16))};
    x[1] = {_mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(-65536)))};
  } else {
    x[0] = load_as<F>(p);
    x[1] = load_as<F>(p + 8 * (F == Format::kFloat32 ? 4 : 2));
  }
}
// From the order of load_two to that of memory, and back.
template <Format F>
static inline void to_memory_order(Vec* x) {
  if constexpr (F == Format::kBFloat16) {
    const __m256 low = _mm256_unpacklo_ps(x[0].x, x[1].x);
    const __m256 high = _mm256_unpackhi_ps(x[0].x, x[1].x);
    x[0] = {_mm256_permute2f128_ps(low, high, 0x20)};
    x[1] = {_mm256_permute2f128_ps(low, high, 0x31)};
  }
}
template <Format F>
static inline void from_memory_order(Vec* x) {
  if constexpr (F == Format::kBFloat16) {
    const __m256 outer = _mm256_permute2f128_ps(x[0].x, x[1].x, 0x20);
    const __m256 inner = _mm256_permute2f128_ps(x[0].x, x[1].x, 0x31);
    x[0] = {_mm256_shuffle_ps(outer, inner, 0x88)};
    x[1] = {_mm256_shuffle_ps(outer, inner, 0xDD)};
  }
}
// The first eight elements, the rest zero.
template <Format F>
static inline Vec load_eight(const char* p) {
  return load_as<F>(p);
}

template <Format F>
static inline void store_eight(char* p, Vec a) {
  if constexpr (F == Format::kFloat32) {
    _mm256_storeu_ps(reinterpret_cast<float*>(p), a.x);
  } else if constexpr (F == Format::kFloat16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else {
    const __m256i bits = _mm256_castps_si256(a.x);
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    r = _mm256_srli_epi32(r, 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.x, a.x, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, quiet, nan);
    const __m256i packed = _mm256_packus_epi32(r, r);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_unpacklo_epi64(_mm256_castsi256_si128(packed),
                                        _mm256_extracti128_si256(packed, 1)));
  }
}
template <Format F>
static inline void store_as(char* p, Vec a) {
  store_eight<F>(p, a);
}

static inline uint64_t read_memory_loop(const char* p, int64_t n) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (const char* end = p + n; p < end; p += 128) {
    a = _mm256_xor_si256(a, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)));
    c = _mm256_xor_si256(c, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 64)));
    d = _mm256_xor_si256(d, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 96)));
  }
  a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  return static_cast<uint64_t>(_mm256_extract_epi64(a, 0) ^ _mm256_extract_epi64(a, 1) ^
                               _mm256_extract_epi64(a, 2) ^ _mm256_extract_epi64(a, 3));
}
