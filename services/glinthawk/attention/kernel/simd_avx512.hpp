// Sixteen floats on AVX-512 F, BW, DQ and VL. Included inside the namespace of its
// instruction set.
struct Vec {
  static constexpr int kWidth = 16;
  static constexpr int kMaxBlock = 8;
  static constexpr int kAccumulators = 16;
  __m512 x;
};

static inline Vec zero() { return {_mm512_setzero_ps()}; }
static inline Vec broadcast(float a) { return {_mm512_set1_ps(a)}; }
static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.x); }
static inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.x, b.x)}; }
static inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.x, b.x)}; }
static inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.x, b.x)}; }
static inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.x, b.x)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
// *a * b + c. The multiplication reads `a` itself: a broadcast of its own would take a turn of
// the units that multiply, and compilers make one where two multiplications share `a`.
static inline Vec fma_at(const float* a, Vec b, Vec c) {
  asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c.x) : "v"(b.x), "m"(*a));
  return c;
}
// Whether a lane exceeds the limit's or is no number.
static inline bool is_any_above(Vec a, Vec limit) {
  return _mm512_cmp_ps_mask(a.x, limit.x, _CMP_NLE_UQ) != 0;
}
static inline Vec round_even(Vec a) {
  return {_mm512_roundscale_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline float first_of(Vec a) { return _mm512_cvtss_f32(a.x); }
// The largest of all lanes, in every lane.
static inline Vec spread_largest(Vec a) { return {_mm512_set1_ps(_mm512_reduce_max_ps(a.x))}; }
static inline Vec scale_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.x, n.x)}; }

template <Format F>
static inline Vec load_as(const char* p) {
  if constexpr (F == Format::kFloat32) {
    return {_mm512_loadu_ps(p)};
  } else if constexpr (F == Format::kFloat16) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  } else {
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))};
  }
}
// Thirty-two items; bf16 as the even ones, then the odd ones, which takes half the work.
template <Format F>
static inline void load_two(const char* p, Vec* x) {
  if constexpr (F == Format::kBFloat16) {
    const __m512i w = _mm512_loadu_si512(p);
    x[0] = {_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))};
    x[1] = {_mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(-65536)))};
  } else {
    x[0] = load_as<F>(p);
    x[1] = load_as<F>(p + 16 * (F == Format::kFloat32 ? 4 : 2));
  }
}
// From the order of load_two to that of memory, and back.
template <Format F>
static inline void to_memory_order(Vec* x) {
  if constexpr (F == Format::kBFloat16) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 even = x[0].x, odd = x[1].x;
    x[0] = {_mm512_permutex2var_ps(even, low, odd)};
    x[1] = {_mm512_permutex2var_ps(even, high, odd)};
  }
}
template <Format F>
static inline void from_memory_order(Vec* x) {
  if constexpr (F == Format::kBFloat16) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                                           30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512 low = x[0].x, high = x[1].x;
    x[0] = {_mm512_permutex2var_ps(low, even, high)};
    x[1] = {_mm512_permutex2var_ps(low, odd, high)};
  }
}
template <Format F>
static inline Vec load_eight(const char* p) {
  if constexpr (F == Format::kFloat32) {
    return {_mm512_zextps256_ps512(_mm256_loadu_ps(reinterpret_cast<const float*>(p)))};
  } else if constexpr (F == Format::kFloat16) {
    return {_mm512_zextps256_ps512(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  } else {
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm512_zextps256_ps512(_mm256_castsi256_ps(_mm256_slli_epi32(w, 16)))};
  }
}

template <Format F>
static inline __m256i rounded_sixteen(Vec a) {
  if constexpr (F == Format::kFloat16) {
    return _mm512_cvtps_ph(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {
    const __m512i bits = _mm512_castps_si512(a.x);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    r = _mm512_srli_epi32(r, 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.x, a.x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(r);
  }
}
template <Format F>
static inline void store_as(char* p, Vec a) {
  if constexpr (F == Format::kFloat32) {
    _mm512_storeu_ps(p, a.x);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded_sixteen<F>(a));
  }
}
template <Format F>
static inline void store_eight(char* p, Vec a) {
  if constexpr (F == Format::kFloat32) {
    _mm256_storeu_ps(reinterpret_cast<float*>(p), _mm512_castps512_ps256(a.x));
  } else {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_castsi256_si128(rounded_sixteen<F>(a)));
  }
}

static inline uint64_t read_memory_loop(const char* p, int64_t n) {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (const char* end = p + n; p < end; p += 256) {
    a = _mm512_xor_si512(a, _mm512_loadu_si512(p));
    b = _mm512_xor_si512(b, _mm512_loadu_si512(p + 64));
    c = _mm512_xor_si512(c, _mm512_loadu_si512(p + 128));
    d = _mm512_xor_si512(d, _mm512_loadu_si512(p + 192));
  }
  a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(a));
}
