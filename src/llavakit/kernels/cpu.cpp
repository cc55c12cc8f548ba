// Kernels of a decode step on a processor: small products, attention, and what stands between.
//
// A plain shared library, called through ctypes (see native.py), so that it depends on no version
// of torch or Python. It is compiled once for each instruction set and the best one is loaded. All
// sums are in fp32. A product's sum never depends on how many rows are computed beside it.
//
// Threads are OpenMP's. torch's own copy of libgomp is loaded before this library and answers its
// calls, so that both share one pool.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, MR = 4, NR = 5;
#elif defined(__AVX2__)
constexpr int W = 8, MR = 4, NR = 3;
#else
constexpr int W = 4, MR = 4, NR = 3;
#endif

typedef float V __attribute__((vector_size(W * 4)));
typedef float VU __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef uint32_t VW __attribute__((vector_size(W * 4)));
typedef uint16_t H __attribute__((vector_size(W * 2)));
typedef uint16_t HU __attribute__((vector_size(W * 2), aligned(2), may_alias));

inline V load(const float* p) { return *reinterpret_cast<const VU*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<VU*>(p) = v; }
inline V load(const uint16_t* p) {  // bf16
  VW wide = __builtin_convertvector(*reinterpret_cast<const HU*>(p), VW) << 16;
  return (V)wide;
}
inline V all(float x) { return V{} + x; }
inline float one(const float* p) { return *p; }
inline float one(const uint16_t* p) {
  uint32_t bits = uint32_t(*p) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline void put(float* p, float x) { *p = x; }
inline void put(uint16_t* p, float x) {  // to the nearest bf16, halves to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) {
    *p = 0x7fc0;
    return;
  }
  *p = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float sum(V v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 low = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  low = _mm_add_ps(low, _mm_movehl_ps(low, low));
  return _mm_cvtss_f32(_mm_add_ss(low, _mm_shuffle_ps(low, low, 1)));
#else
  float total = 0;
  for (int i = 0; i < W; i++) total += v[i];
  return total;
#endif
}
// The sums of four vectors at once, which takes half the steps of one after the other.
inline void four_sums(V a, V b, V c, V d, float* out) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const auto half = [](V v) {
    const __m512 wide = (__m512)v;
    return _mm256_add_ps(_mm512_castps512_ps256(wide),
                         _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(wide), 1)));
  };
#else
  const auto half = [](V v) { return (__m256)v; };
#endif
  const __m256 p = half(a), q = half(b), r = half(c), s = half(d);
  const __m256 pq = _mm256_add_ps(_mm256_unpacklo_ps(p, q), _mm256_unpackhi_ps(p, q));
  const __m256 rs = _mm256_add_ps(_mm256_unpacklo_ps(r, s), _mm256_unpackhi_ps(r, s));
  const __m256 all = _mm256_add_ps(_mm256_shuffle_ps(pq, rs, 0x44), _mm256_shuffle_ps(pq, rs, 0xee));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
  out[0] = sum(a);
  out[1] = sum(b);
  out[2] = sum(c);
  out[3] = sum(d);
#endif
}
inline float most(V v) {
  float best = v[0];
  for (int i = 1; i < W; i++) best = std::max(best, v[i]);
  return best;
}

// exp after the reduction x = n ln 2 + r, a polynomial of degree 6 in r (error below 2 ulp).
inline V exp(V x) {
  x = x < -87.3f ? all(-87.3f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  V n = x * 1.44269504088896341f;
  const V magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  V rounded = (n + magic) - magic;
  V r = x - rounded * 0.693359375f;
  r = r + rounded * 2.12194440e-4f;
  V p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  VI power = (__builtin_convertvector(rounded, VI) + 127) << 23;
  return p * (V)power;
}

inline int threads_of(int asked) {
#ifdef _OPENMP
  return std::max(1, asked);
#else
  return 1;
#endif
}
inline int place() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}
// Whoever is given fewer threads than asked for (a nested region, a limit) shares among those.
inline int present() {
#ifdef _OPENMP
  return omp_get_num_threads();
#else
  return 1;
#endif
}

// ---------------------------------------------------------------- products

enum Kind { FP32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

constexpr int64_t GROUP = 32;   // values that share a scale
constexpr int64_t PANEL = 16;   // rows of a quantised matrix that lie together

}  // namespace

extern "C" struct Matrix {
  const void* data;
  const uint16_t* scales;  // of quantised kinds: [panels, groups, 16] of fp16
  const float* bias;       // or null
  int64_t rows, columns;
  int64_t groups;  // of quantised kinds
  int32_t kind;
};

namespace {

// One block of at most R rows of x times C rows of w over `length` columns, added to y.
template <class T, int R, int C>
inline void block(const float* x, int64_t ldx, const T* w, int64_t ldw, int64_t length, float* y,
                  int64_t ldy, int64_t ahead) {
  V total[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) total[r][c] = V{};
  int64_t k = 0;
  for (; k + W <= length; k += W) {
    V of_w[C];
    for (int c = 0; c < C; c++) {
      of_w[c] = load(w + c * ldw + k);
      if (ahead) __builtin_prefetch(w + c * ldw + k + ahead, 0, 2);
    }
    for (int r = 0; r < R; r++) {
      V of_x = load(x + r * ldx + k);
      for (int c = 0; c < C; c++) total[r][c] += of_x * of_w[c];
    }
  }
  // Four at a time: each sum's order is the same wherever it stands, so that a row's numbers do not
  // depend on its neighbours.
  const V* flat = &total[0][0];
  float s[R * C + 3];
  for (int i = 0; i < R * C; i += 4)
    four_sums(flat[i], flat[std::min(i + 1, R * C - 1)], flat[std::min(i + 2, R * C - 1)],
              flat[std::min(i + 3, R * C - 1)], s + i);
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      float rest = s[r * C + c];
      for (int64_t j = k; j < length; j++) rest += x[r * ldx + j] * one(w + c * ldw + j);
      y[r * ldy + c] += rest;
    }
}

template <class T, int C>
inline void rows_of(int64_t m, const float* x, int64_t ldx, const T* w, int64_t ldw, int64_t length,
                    float* y, int64_t ldy, int64_t ahead) {
  switch (m) {
    case 1: return block<T, 1, C>(x, ldx, w, ldw, length, y, ldy, ahead);
    case 2: return block<T, 2, C>(x, ldx, w, ldw, length, y, ldy, ahead);
    case 3: return block<T, 3, C>(x, ldx, w, ldw, length, y, ldy, ahead);
    default: return block<T, 4, C>(x, ldx, w, ldw, length, y, ldy, ahead);
  }
}

template <class T>
inline void dispatch(int64_t m, int64_t c, const float* x, int64_t ldx, const T* w, int64_t ldw,
                     int64_t length, float* y, int64_t ldy, int64_t ahead) {
  switch (c) {
    case 1: return rows_of<T, 1>(m, x, ldx, w, ldw, length, y, ldy, ahead);
    case 2: return rows_of<T, 2>(m, x, ldx, w, ldw, length, y, ldy, ahead);
#if defined(__AVX512F__)
    case 3: return rows_of<T, 3>(m, x, ldx, w, ldw, length, y, ldy, ahead);
    case 4: return rows_of<T, 4>(m, x, ldx, w, ldw, length, y, ldy, ahead);
#endif
    default: return rows_of<T, NR>(m, x, ldx, w, ldw, length, y, ldy, ahead);
  }
}

constexpr int64_t CHUNK = 4 * NR;  // rows of w that stay in the cache while all rows of x pass
constexpr int64_t COLUMNS = 1024;  // columns that are taken at once, for the same reason

// y[:, first:last] of y = x w^T + bias.
template <class T>
void plain(const float* x, int64_t m, const Matrix& w, float* y, int64_t ldy, int64_t first,
           int64_t last) {
  const T* data = static_cast<const T*>(w.data);
  const int64_t k = w.columns;
  for (int64_t n = first; n < last; n += CHUNK) {
    const int64_t end = std::min(n + CHUNK, last);
    for (int64_t r = 0; r < m; r++)
      for (int64_t c = n; c < end; c++) y[r * ldy + c] = w.bias ? w.bias[c] : 0.0f;
    const auto some = [&](int64_t r, int64_t c, int64_t from, int64_t ahead) {
      dispatch<T>(std::min<int64_t>(MR, m - r), std::min<int64_t>(NR, end - c), x + r * k + from, k,
                  data + c * k + from, k, std::min(COLUMNS, k - from), y + r * ldy + c, ldy, ahead);
    };
    // Asks for the lines that the next chunk reads.
    const auto next = [&](int64_t c) { return c + CHUNK + NR <= last ? CHUNK * k : 0; };
    if (m <= MR) {
      // Each row of w is read once and from end to end: long ones the processor fetches itself.
      const bool asks = m > 1 && k <= COLUMNS;
      for (int64_t c = n; c < end; c += NR)
        for (int64_t from = 0; from < k; from += COLUMNS) some(0, c, from, asks ? next(c) : 0);
      continue;
    }
    for (int64_t from = 0; from < k; from += COLUMNS)
      for (int64_t r = 0; r < m; r += MR)
        for (int64_t c = n; c < end; c += NR) some(r, c, from, r == 0 ? next(c) : 0);
  }
}

// Rows of x in int8: groups of 32 values with a scale each (the largest is 127).
struct Quantised {
  std::vector<int8_t> values;  // [m, groups * 32]
  std::vector<float> scales;   // [m, groups]
  std::vector<int32_t> sums;   // [m, groups]
};

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  uint32_t exponent = (h >> 10) & 31, fraction = h & 1023, bits;
  if (exponent == 0) {
    float x = std::ldexp(float(fraction), -24);
    return sign ? -x : x;
  }
  bits = exponent == 31 ? sign | 0x7f800000 | (fraction << 13)
                        : sign | ((exponent + 112) << 23) | (fraction << 13);
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint16_t float_to_half(float x) {  // to the nearest, halves to even
#if defined(__F16C__)
  return uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const float size = std::fabs(x);
  if (!(size < 65520.0f)) return sign | (size == size ? 0x7c00 : 0x7e00);
  if (size < 6.103515625e-5f)  // below the normal numbers: steps of 2^-24
    return sign | uint16_t(std::nearbyint(size * 16777216.0f));
  bits &= 0x7fffffff;
  bits += 0xfff + ((bits >> 13) & 1);
  return sign | uint16_t((bits - (112u << 23)) >> 13);
#endif
}

// Values of one group and their scale; see packing.py, which says why it is rounded so.
inline float round8(const float* x, int8_t* values) {
  float largest = 0;
  for (int64_t i = 0; i < GROUP; i++) largest = std::max(largest, std::fabs(x[i]));
  const float scale = half_to_float(float_to_half(largest / 127.0f));
  const float inverse = scale == 0 ? 0.0f : 1.0f / scale;
  for (int64_t i = 0; i < GROUP; i++)
    values[i] = int8_t(std::max(-127.0f, std::min(127.0f, std::nearbyint(x[i] * inverse))));
  return scale;
}

inline float round4(const float* x, int8_t* values) {
  constexpr float shares[] = {1.0f, 0.94f, 0.88f, 0.82f};
  float extreme = 0, least = INFINITY, best = 0;
  for (int64_t i = 0; i < GROUP; i++)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  for (float share : shares) {
    const float scale = half_to_float(float_to_half(extreme * (share / -8.0f)));
    const float inverse = scale == 0 ? 0.0f : 1.0f / scale;
    float rounded[GROUP], error = 0;
    for (int64_t i = 0; i < GROUP; i++) {
      rounded[i] = std::max(-8.0f, std::min(7.0f, std::nearbyint(x[i] * inverse)));
      const float off = rounded[i] * scale - x[i];
      error += off * off;
    }
    if (error < least || share == shares[0]) {
      least = error;
      best = scale;
      for (int64_t i = 0; i < GROUP; i++) values[i] = int8_t(rounded[i]);
    }
  }
  return best;
}

template <class T>
void pack_panel(const T* w, int64_t rows, int64_t columns, int64_t groups, int bits, int64_t p,
                uint8_t* data, uint16_t* scales) {
  const int64_t size = bits == 8 ? 512 : 256;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t n = 0; n < PANEL; n++) {
      float x[GROUP] = {};
      int8_t values[GROUP];
      const int64_t row = p * PANEL + n, length = std::min(GROUP, columns - g * GROUP);
      if (row < rows)
        for (int64_t i = 0; i < length; i++) x[i] = one(w + row * columns + g * GROUP + i);
      const float scale = bits == 8 ? round8(x, values) : round4(x, values);
      scales[(p * groups + g) * PANEL + n] = float_to_half(scale);
      uint8_t* out = data + (p * groups + g) * size + n * 4;
      for (int c = 0; c < (bits == 8 ? 8 : 4); c++)
        for (int i = 0; i < 4; i++)
          out[c * 64 + i] = bits == 8 ? uint8_t(values[c * 4 + i])
                                      : uint8_t((values[c * 4 + i] + 8) |
                                                (values[c * 4 + 16 + i] + 8) << 4);
    }
}

void quantise(const float* x, int64_t m, int64_t k, int64_t groups, int8_t* values, float* scales,
              int32_t* sums, int worker, int workers) {
  for (int64_t item = worker; item < m * groups; item += workers) {
    const int64_t row = item / groups, group = item % groups;
    const int64_t from = group * GROUP, length = std::max<int64_t>(0, std::min(GROUP, k - from));
    const float* source = x + row * k + from;
    float largest = 0;
    for (int64_t i = 0; i < length; i++) largest = std::max(largest, std::fabs(source[i]));
    const float scale = largest / 127.0f;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int8_t* target = values + (row * groups + group) * GROUP;
    int32_t total = 0;
    for (int64_t i = 0; i < GROUP; i++) {
      const int32_t value = i < length ? int32_t(std::nearbyint(source[i] * inverse)) : 0;
      target[i] = int8_t(value);
      total += value;
    }
    // What is not finite must stay so: it would else be a wrong answer without a word.
    scales[item] = std::isfinite(largest) ? scale : largest;
    for (int64_t i = 0; i < length; i++)
      if (!std::isfinite(source[i])) scales[item] = NAN;
    sums[item] = total;
  }
}

inline int32_t four(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

// Panels of 16 rows: INT8 [groups, 8 chunks, 16 rows, 4 values]; INT4 [groups, 4 chunks, 16 rows,
// 4 bytes], where a low nibble is a value of its chunk and the high one that of the chunk 4 behind,
// both 8 too large. R rows of x times one panel.
template <int KIND, int R>
inline void panel(const int8_t* values, const float* scales, const int32_t* sums, int64_t groups,
                  const uint8_t* data, const uint16_t* weights, float* out /* [R, 16] */) {
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
  __m512 total[R];
  for (int r = 0; r < R; r++) total[r] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    __m512i w[8];
    if (KIND == INT8) {
      for (int c = 0; c < 8; c++)
        w[c] = _mm512_xor_si512(_mm512_loadu_si512(data + c * 64), _mm512_set1_epi8(-128));
      data += 512;
    } else {
      const __m512i low = _mm512_set1_epi8(15);
      for (int c = 0; c < 4; c++) {
        __m512i both = _mm512_loadu_si512(data + c * 64);
        w[c] = _mm512_and_si512(both, low);
        w[c + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      }
      data += 256;
    }
    __m512 scale = _mm512_cvtph_ps(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + g * PANEL)));
    for (int r = 0; r < R; r++) {
      const int8_t* x = values + (r * groups + g) * GROUP;
      __m512i dot =
          _mm512_set1_epi32((KIND == INT8 ? -128 : -8) * sums[r * groups + g]);
      for (int c = 0; c < 8; c++)
        dot = _mm512_dpbusd_epi32(dot, w[c], _mm512_set1_epi32(four(x + c * 4)));
      total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                 _mm512_mul_ps(scale, _mm512_set1_ps(scales[r * groups + g])),
                                 total[r]);
    }
  }
  for (int r = 0; r < R; r++) _mm512_storeu_ps(out + r * PANEL, total[r]);
#elif defined(__AVX2__)
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; half++) {
    __m256 total[R];
    for (int r = 0; r < R; r++) total[r] = _mm256_setzero_ps();
    const uint8_t* bytes = data + half * 32;
    for (int64_t g = 0; g < groups; g++) {
      __m256i w[8];
      if (KIND == INT8) {
        for (int c = 0; c < 8; c++)
          w[c] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + c * 64));
        bytes += 512;
      } else {
        const __m256i low = _mm256_set1_epi8(15);
        for (int c = 0; c < 4; c++) {
          __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + c * 64));
          w[c] = _mm256_and_si256(both, low);
          w[c + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        }
        bytes += 256;
      }
      __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(
          reinterpret_cast<const __m128i*>(weights + g * PANEL + half * 8)));
      for (int r = 0; r < R; r++) {
        const int8_t* x = values + (r * groups + g) * GROUP;
        __m256i dot;
        if (KIND == INT8) {
          dot = _mm256_setzero_si256();
          for (int c = 0; c < 8; c++) {
            __m256i of_x = _mm256_sign_epi8(_mm256_set1_epi32(four(x + c * 4)), w[c]);
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[c]), of_x);
            dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
          }
        } else {
          // 8 pairs of at most 2 * 15 * 127 fit into 16 bits.
          __m256i pairs = _mm256_maddubs_epi16(w[0], _mm256_set1_epi32(four(x)));
          for (int c = 1; c < 8; c++)
            pairs = _mm256_add_epi16(
                pairs, _mm256_maddubs_epi16(w[c], _mm256_set1_epi32(four(x + c * 4))));
          dot = _mm256_add_epi32(_mm256_madd_epi16(pairs, ones),
                                 _mm256_set1_epi32(-8 * sums[r * groups + g]));
        }
        total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot),
                                   _mm256_mul_ps(scale, _mm256_set1_ps(scales[r * groups + g])),
                                   total[r]);
      }
    }
    for (int r = 0; r < R; r++) _mm256_storeu_ps(out + r * PANEL + half * 8, total[r]);
  }
#else
  for (int r = 0; r < R; r++)
    for (int64_t n = 0; n < PANEL; n++) out[r * PANEL + n] = 0;
  for (int64_t g = 0; g < groups; g++)
    for (int r = 0; r < R; r++) {
      const int8_t* x = values + (r * groups + g) * GROUP;
      for (int64_t n = 0; n < PANEL; n++) {
        int32_t dot = 0;
        if (KIND == INT8) {
          const int8_t* w = reinterpret_cast<const int8_t*>(data) + g * 512 + n * 4;
          for (int c = 0; c < 8; c++)
            for (int i = 0; i < 4; i++) dot += int32_t(w[c * 64 + i]) * x[c * 4 + i];
        } else {
          const uint8_t* w = data + g * 256 + n * 4;
          for (int c = 0; c < 4; c++)
            for (int i = 0; i < 4; i++) {
              dot += (int32_t(w[c * 64 + i] & 15) - 8) * x[c * 4 + i];
              dot += (int32_t(w[c * 64 + i] >> 4) - 8) * x[c * 4 + 16 + i];
            }
        }
        out[r * PANEL + n] += half_to_float(weights[g * PANEL + n]) * scales[r * groups + g] * dot;
      }
    }
#endif
}

template <int KIND>
void packed(const int8_t* values, const float* scales, const int32_t* sums, int64_t m,
            const Matrix& w, float* y, int64_t ldy, int64_t first, int64_t last) {
  const int64_t panel_bytes = w.groups * (KIND == INT8 ? 512 : 256);
  float out[4 * PANEL];
  for (int64_t p = first; p < last; p++) {
    const uint8_t* data = static_cast<const uint8_t*>(w.data) + p * panel_bytes;
    const uint16_t* weights = w.scales + p * w.groups * PANEL;
    const int64_t columns = std::min(PANEL, w.rows - p * PANEL);
    for (int64_t r = 0; r < m; r += 4) {
      const int64_t count = std::min<int64_t>(4, m - r);
      const int8_t* x = values + r * w.groups * GROUP;
      const float* s = scales + r * w.groups;
      const int32_t* t = sums + r * w.groups;
      switch (count) {
        case 1: panel<KIND, 1>(x, s, t, w.groups, data, weights, out); break;
        case 2: panel<KIND, 2>(x, s, t, w.groups, data, weights, out); break;
        case 3: panel<KIND, 3>(x, s, t, w.groups, data, weights, out); break;
        default: panel<KIND, 4>(x, s, t, w.groups, data, weights, out);
      }
      for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < columns; c++) {
          const int64_t n = p * PANEL + c;
          y[(r + i) * ldy + n] = out[i * PANEL + c] + (w.bias ? w.bias[n] : 0.0f);
        }
    }
  }
}

inline bool is_packed(const Matrix& w) { return w.kind == INT8 || w.kind == INT4; }

inline void barrier() {
#pragma omp barrier
}

// What all threads of a team compute together; each of them calls this.
void team_linear(const float* x, int64_t m, const Matrix& w, float* y, int64_t ldy, Quantised& q) {
  const int worker = place(), workers = present();
  if (!is_packed(w)) {
    // Whole cache lines of y, so that no two threads write one.
    const int64_t unit = 16, units = (w.rows + unit - 1) / unit;
    const int64_t first = std::min(w.rows, units * worker / workers * unit);
    const int64_t last = std::min(w.rows, units * (worker + 1) / workers * unit);
    if (w.kind == FP32)
      plain<float>(x, m, w, y, ldy, first, last);
    else
      plain<uint16_t>(x, m, w, y, ldy, first, last);
    return;
  }
  quantise(x, m, w.columns, w.groups, q.values.data(), q.scales.data(), q.sums.data(), worker,
           workers);
  barrier();
  const int64_t panels = (w.rows + PANEL - 1) / PANEL;
  const int64_t first = panels * worker / workers, last = panels * (worker + 1) / workers;
  if (w.kind == INT8)
    packed<INT8>(q.values.data(), q.scales.data(), q.sums.data(), m, w, y, ldy, first, last);
  else
    packed<INT4>(q.values.data(), q.scales.data(), q.sums.data(), m, w, y, ldy, first, last);
}

void make_room(Quantised& q, int64_t m, const Matrix& w) {
  if (!is_packed(w)) return;
  const size_t items = size_t(m * w.groups);
  if (q.scales.size() < items) {
    q.values.resize(items * GROUP);
    q.scales.resize(items);
    q.sums.resize(items);
  }
}

// y = the norm of x + added; x becomes that sum. `added` may be null, or y.
void team_norm(float* x, const float* added, int64_t m, int64_t k, const float* weight, float eps,
               float* y) {
  for (int64_t r = place(); r < m; r += present()) {
    float* row = x + r * k;
    const float* more = added ? added + r * k : nullptr;
    V squares = V{};
    int64_t i = 0;
    for (; i + W <= k; i += W) {
      V v = load(row + i);
      if (more) store(row + i, v = v + load(more + i));
      squares += v * v;
    }
    float total = sum(squares);
    for (; i < k; i++) {
      if (more) row[i] += more[i];
      total += row[i] * row[i];
    }
    const float factor = 1.0f / std::sqrt(total / float(k) + eps);
    for (i = 0; i + W <= k; i += W) store(y + r * k + i, load(row + i) * factor * load(weight + i));
    for (; i < k; i++) y[r * k + i] = row[i] * factor * weight[i];
  }
}

// ---------------------------------------------------------------- attention

constexpr int64_t KEYS = 64;  // that are scored at once

// c[rows, width] = or += a[rows, depth] b[depth, width]; a's rows are `lda` apart, and so on.
template <int R, int C>
inline void tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c,
                 int64_t ldc, bool add) {
  V total[R][C];
  for (int r = 0; r < R; r++)
    for (int j = 0; j < C; j++) total[r][j] = add ? load(c + r * ldc + j * W) : V{};
  for (int64_t d = 0; d < depth; d++) {
    V of_b[C];
    for (int j = 0; j < C; j++) of_b[j] = load(b + d * ldb + j * W);
    for (int r = 0; r < R; r++) {
      V of_a = all(a[r * lda + d]);
      for (int j = 0; j < C; j++) total[r][j] += of_a * of_b[j];
    }
  }
  for (int r = 0; r < R; r++)
    for (int j = 0; j < C; j++) store(c + r * ldc + j * W, total[r][j]);
}

template <int C>
inline void tiles(int64_t rows, const float* a, int64_t lda, const float* b, int64_t ldb,
                  int64_t depth, float* c, int64_t ldc, bool add) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) tile<4, C>(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc, add);
  for (; r < rows; r++) tile<1, C>(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc, add);
}

// width is a multiple of W.
void multiply(int64_t rows, int64_t width, const float* a, int64_t lda, const float* b, int64_t ldb,
              int64_t depth, float* c, int64_t ldc, bool add) {
  int64_t j = 0;
  for (; j + 2 * W <= width; j += 2 * W)
    tiles<2>(rows, a, lda, b + j, ldb, depth, c + j, ldc, add);
  for (; j < width; j += W) tiles<1>(rows, a, lda, b + j, ldb, depth, c + j, ldc, add);
}

struct Scratch {
  std::vector<float> query, turned, values, scores, out, best, total;
  void reserve(int64_t queries, int64_t wide) {
    query.resize(queries * wide);
    out.resize(queries * wide);
    scores.resize(queries * KEYS);
    turned.resize(wide * KEYS);
    values.resize(KEYS * wide);
    best.resize(queries);
    total.resize(queries);
  }
};

// Scores become weights; what was summed up before is scaled to the new largest score.
inline void soften(float* scores, int64_t count, float& best, float& total, float* out,
                   int64_t wide) {
  for (int64_t j = count; j < KEYS; j++) scores[j] = -INFINITY;
  V top = load(scores);
  for (int64_t j = W; j < KEYS; j += W) {
    V v = load(scores + j);
    top = v > top ? v : top;
  }
  float now = std::max(best, most(top));
  // A score of NaN is in no maximum; it comes back by the sum below, and is told by whoever
  // looks at the logits.
  const float factor = best == -INFINITY ? 0.0f : std::exp(best - now);
  V sums = V{};
  for (int64_t j = 0; j < KEYS; j += W) {
    V x = load(scores + j) - now;
    V e = exp(x);
    e = x < -87.0f ? V{} : e;
    e = x == x ? e : x;
    store(scores + j, e);
    sums += e;
  }
  total = total * factor + sum(sums);
  if (factor != 1.0f)
    for (int64_t d = 0; d < wide; d += W) store(out + d, load(out + d) * factor);
  best = now;
}

template <class T>
struct Store {
  T* data;
  int64_t head, slot;  // strides
  const T* at(int64_t h, int64_t s) const { return data + h * head + s * slot; }
};

// Keys [count, dim] as they lie -> [dim, KEYS], filled up with zeros.
template <class T>
inline void turn(const T* keys, int64_t stride, int64_t count, int64_t dim, float* out) {
  int64_t j = 0;
#if defined(__AVX2__)
  for (; j + 8 <= count; j += 8) {
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
      __m256 r[8], t[8];
      for (int i = 0; i < 8; i++) {
        const T* key = keys + (j + i) * stride + d;
        if (sizeof(T) == 4)
          r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(key));
        else
          r[i] = _mm256_castsi256_ps(_mm256_slli_epi32(
              _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(key))), 16));
      }
      for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
      }
      for (int i = 0; i < 2; i++) {
        const __m256 *a = t + 4 * i, *b = a + 2;
        r[4 * i] = _mm256_shuffle_ps(a[0], b[0], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(a[0], b[0], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(a[1], b[1], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(a[1], b[1], 0xee);
      }
      for (int i = 0; i < 4; i++) {
        float* row = out + (d + i) * KEYS + j;
        _mm256_storeu_ps(row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(row + 4 * KEYS, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
      }
    }
    for (; d < dim; d++)
      for (int i = 0; i < 8; i++) out[d * KEYS + j + i] = one(keys + (j + i) * stride + d);
  }
#endif
  for (; j < count; j++)
    for (int64_t d = 0; d < dim; d++) out[d * KEYS + j] = one(keys + j * stride + d);
  for (; j < KEYS; j++)
    for (int64_t d = 0; d < dim; d++) out[d * KEYS + j] = 0;
}

// Values as fp32 with rows of whole vectors: as they lie, or copied.
inline const float* wide_values(const float* values, int64_t stride, int64_t count, int64_t dim,
                                int64_t wide, float* copy, int64_t& rows_apart) {
  if (dim == wide) {
    rows_apart = stride;
    return values;
  }
  for (int64_t j = 0; j < count; j++) std::memcpy(copy + j * wide, values + j * stride, dim * 4);
  rows_apart = wide;
  return copy;
}
inline const float* wide_values(const uint16_t* values, int64_t stride, int64_t count, int64_t dim,
                                int64_t wide, float* copy, int64_t& rows_apart) {
  for (int64_t j = 0; j < count; j++)
    for (int64_t d = 0; d < dim; d++) copy[j * wide + d] = one(values + j * stride + d);
  rows_apart = wide;
  return copy;
}

// Several queries over one stretch of keys: keys are turned once for all of them.
template <class T>
void many(Scratch& s, int64_t queries, int64_t dim, int64_t wide, const Store<T>& keys,
          const Store<T>& values, int64_t head, int64_t start, int64_t length) {
  for (int64_t from = 0; from < length; from += KEYS) {
    const int64_t count = std::min(KEYS, length - from);
    turn(keys.at(head, start + from), keys.slot, count, dim, s.turned.data());
    multiply(queries, KEYS, s.query.data(), wide, s.turned.data(), KEYS, dim, s.scores.data(), KEYS,
             false);
    for (int64_t i = 0; i < queries; i++)
      soften(&s.scores[i * KEYS], count, s.best[i], s.total[i], &s.out[i * wide], wide);
    int64_t apart;
    const float* of_values = wide_values(values.at(head, start + from), values.slot, count, dim,
                                         wide, s.values.data(), apart);
    multiply(queries, wide, s.scores.data(), KEYS, of_values, apart, count, s.out.data(), wide,
             true);
  }
}

template <class T, int C>
inline void gather(const Store<T>& values, int64_t head, int64_t slot, int64_t count,
                   const float* weights, float* out, int64_t offset) {
  V total[C];
  for (int c = 0; c < C; c++) total[c] = load(out + c * W);
  for (int64_t j = 0; j < count; j++) {
    const T* value = values.at(head, slot + j) + offset;
    V weight = all(weights[j]);
    for (int c = 0; c < C; c++) total[c] += weight * load(value + c * W);
  }
  for (int c = 0; c < C; c++) store(out + c * W, total[c]);
}

// One query over one stretch of keys, as they lie.
template <class T>
void single(Scratch& s, int64_t i, int64_t dim, int64_t wide, const Store<T>& keys,
            const Store<T>& values, int64_t head, int64_t start, int64_t length) {
  const float* query = &s.query[i * wide];
  float* scores = &s.scores[i * KEYS];
  float* out = &s.out[i * wide];
  const int64_t even = dim / W * W;
  for (int64_t from = 0; from < length; from += KEYS) {
    const int64_t count = std::min(KEYS, length - from), slot = start + from;
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
      const T* key[4];
      V total[4] = {V{}, V{}, V{}, V{}};
      for (int c = 0; c < 4; c++) key[c] = keys.at(head, slot + j + c);
      for (int64_t d = 0; d < even; d += W) {
        V of_query = load(query + d);
        for (int c = 0; c < 4; c++) total[c] += of_query * load(key[c] + d);
      }
      four_sums(total[0], total[1], total[2], total[3], scores + j);
      for (int c = 0; c < 4; c++)
        for (int64_t d = even; d < dim; d++) scores[j + c] += query[d] * one(key[c] + d);
    }
    for (; j < count; j++) {
      const T* key = keys.at(head, slot + j);
      V total = V{};
      for (int64_t d = 0; d < even; d += W) total += load(query + d) * load(key + d);
      scores[j] = sum(total);
      for (int64_t d = even; d < dim; d++) scores[j] += query[d] * one(key + d);
    }
    soften(scores, count, s.best[i], s.total[i], out, wide);
    int64_t d = 0;
    for (; d + 8 * W <= even; d += 8 * W) gather<T, 8>(values, head, slot, count, scores, out + d, d);
    for (; d + 2 * W <= even; d += 2 * W) gather<T, 2>(values, head, slot, count, scores, out + d, d);
    for (; d + W <= even; d += W) gather<T, 1>(values, head, slot, count, scores, out + d, d);
    for (; d < dim; d++)
      for (int64_t n = 0; n < count; n++) out[d] += scores[n] * one(values.at(head, slot + n) + d);
  }
}

}  // namespace

// A unit: tokens that read the same stretches first and each a stretch of its own last.
extern "C" struct Units {
  int64_t count;
  const int64_t* tokens;        // [count + 1]: each unit's first place in token
  const int64_t* token;         // places in the packed pass
  const int64_t* tail_start;    // [tokens]: slots
  const int64_t* tail_length;   // [tokens]
  const int64_t* shared;        // [count + 1]: each unit's first shared stretch
  const int64_t* shared_start;  // slots
  const int64_t* shared_length;
};

extern "C" struct Attention {
  const float* query;  // [T, heads, dim]
  const float* key;    // [T, kv_heads, dim]
  const float* value;
  int64_t query_row, key_row, value_row;  // strides of tokens; heads lie behind each other
  void* keys;                             // [kv_heads, slots, dim]
  void* values;
  int64_t key_head, key_slot, value_head, value_slot;  // strides
  const int64_t* slot;                                  // [T]: where new keys and values belong
  int64_t tokens, heads, kv_heads, dim;
  float scaling;
  int32_t kind;  // of the arena: FP32 or BF16
  float* out;    // [T, heads, dim]
};

namespace {

template <class T>
void team_store(const Attention& a, const Store<T>& keys, const Store<T>& values) {
  const int64_t items = a.tokens * a.kv_heads;
  const int64_t first = items * place() / present(), last = items * (place() + 1) / present();
  for (int64_t item = first; item < last; item++) {
    const int64_t t = item / a.kv_heads, h = item % a.kv_heads;
    T* key = keys.data + h * keys.head + a.slot[t] * keys.slot;
    T* value = values.data + h * values.head + a.slot[t] * values.slot;
    const float* new_key = a.key + t * a.key_row + h * a.dim;
    const float* new_value = a.value + t * a.value_row + h * a.dim;
    for (int64_t d = 0; d < a.dim; d++) put(key + d, new_key[d]);
    for (int64_t d = 0; d < a.dim; d++) put(value + d, new_value[d]);
  }
}

template <class T>
void one_unit(const Attention& a, const Units& u, const Store<T>& keys, const Store<T>& values,
              int64_t unit, int64_t head, Scratch& s) {
  const int64_t group = a.heads / a.kv_heads, dim = a.dim, wide = (dim + W - 1) / W * W;
  const int64_t first = u.tokens[unit], count = u.tokens[unit + 1] - first;
  const int64_t queries = count * group;
  s.reserve(queries, wide);
  std::fill_n(s.out.begin(), queries * wide, 0.0f);
  for (int64_t i = 0; i < queries; i++) {
    const float* query =
        a.query + u.token[first + i / group] * a.query_row + (head * group + i % group) * dim;
    for (int64_t d = 0; d < wide; d++) s.query[i * wide + d] = d < dim ? query[d] * a.scaling : 0;
    s.best[i] = -INFINITY;
    s.total[i] = 0;
  }
  std::fill(s.values.begin(), s.values.end(), 0.0f);
  for (int64_t p = u.shared[unit]; p < u.shared[unit + 1]; p++) {
    const int64_t start = u.shared_start[p], length = u.shared_length[p];
    if (queries >= 4)
      many(s, queries, dim, wide, keys, values, head, start, length);
    else
      for (int64_t i = 0; i < queries; i++)
        single(s, i, dim, wide, keys, values, head, start, length);
  }
  for (int64_t i = 0; i < queries; i++) {
    const int64_t t = first + i / group;
    single(s, i, dim, wide, keys, values, head, u.tail_start[t], u.tail_length[t]);
    float* out = a.out + (u.token[t] * a.heads + head * group + i % group) * dim;
    const float inverse = 1.0f / s.total[i];
    for (int64_t d = 0; d < dim; d++) out[d] = s.out[i * wide + d] * inverse;
  }
}

template <class T>
void team_attend(const Attention& a, const Units& u, const Store<T>& keys, const Store<T>& values) {
  static thread_local Scratch scratch;
#pragma omp for schedule(dynamic)
  for (int64_t item = 0; item < u.count * a.kv_heads; item++)
    one_unit(a, u, keys, values, item / a.kv_heads, item % a.kv_heads, scratch);
}

template <class T>
void attend(const Attention& a, const Units& u, int threads) {
  const Store<T> keys{static_cast<T*>(a.keys), a.key_head, a.key_slot};
  const Store<T> values{static_cast<T*>(a.values), a.value_head, a.value_slot};
#pragma omp parallel num_threads(threads_of(threads))
  {
    team_store(a, keys, values);
    barrier();
    team_attend(a, u, keys, values);
  }
}

}  // namespace

// ---------------------------------------------------------------- a decoder

// One layer's keys and values in the arena.
extern "C" struct Cache {
  void *keys, *values;                                 // [kv_heads, slots, dim]
  int64_t key_head, key_slot, value_head, value_slot;  // strides
};

extern "C" struct Layer {
  const float *norm, *behind_norm;  // before and behind the attention
  Matrix qkv, out, gate_up, down;
  float scaling;  // of the scores
};

extern "C" struct Decode {
  const Layer* layers;
  const Cache* caches;
  int64_t count;  // of layers
  int64_t tokens, size, inner, heads, kv_heads, dim, half;
  const float *cos, *sin;  // [tokens, half]
  const int64_t* slot;     // [tokens]: where new keys and values belong
  const float* norm;       // behind the last layer
  float eps;
  int32_t kind;    // of the arena: FP32 or BF16
  float* hidden;   // [tokens, size]: embeddings, then each layer's result
  float* scratch;  // tokens * (size + (2 heads + 2 kv_heads) dim + 3 inner) numbers
  float* out;      // [tokens, size]: hidden states behind the last norm
};

namespace {

inline void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  int64_t d = 0;
  for (; d + W <= half; d += W) {
    const V a = load(x + d), b = load(x + half + d), c = load(cos + d), s = load(sin + d);
    store(x + d, a * c - b * s);
    store(x + half + d, b * c + a * s);
  }
  for (; d < half; d++) {
    const float a = x[d], b = x[half + d];
    x[d] = a * cos[d] - b * sin[d];
    x[half + d] = b * cos[d] + a * sin[d];
  }
}

// Turns queries and keys by their places and stores keys and values.
template <class T>
void team_turn(const Decode& d, float* mixed, const Store<T>& keys, const Store<T>& values) {
  const int64_t turned = d.heads + d.kv_heads, all = turned + d.kv_heads;
  const int64_t items = d.tokens * all;
  const int64_t first = items * place() / present(), last = items * (place() + 1) / present();
  for (int64_t item = first; item < last; item++) {
    const int64_t t = item / all, h = item % all;
    float* x = mixed + item * d.dim;
    if (h < turned) rotate(x, d.cos + t * d.half, d.sin + t * d.half, d.half);
    if (h < d.heads) continue;
    T* stored = h < turned ? keys.data + (h - d.heads) * keys.head + d.slot[t] * keys.slot
                           : values.data + (h - turned) * values.head + d.slot[t] * values.slot;
    for (int64_t i = 0; i < d.dim; i++) put(stored + i, x[i]);
  }
}

void team_swiglu(const float* both, int64_t m, int64_t size, float* y) {
  const int64_t blocks = (size + W - 1) / W, items = m * blocks;
  const int64_t first = items * place() / present(), last = items * (place() + 1) / present();
  for (int64_t item = first; item < last; item++) {
    const int64_t r = item / blocks, i = item % blocks * W;
    const float *gate = both + r * 2 * size + i, *up = gate + size;
    if (i + W <= size) {
      V g = load(gate);
      store(y + r * size + i, g / (1.0f + exp(-g)) * load(up));
    } else {
      for (int64_t j = 0; i + j < size; j++)
        y[r * size + i + j] = gate[j] / (1.0f + std::exp(-gate[j])) * up[j];
    }
  }
}

// One decoder layer: norm, a product, rotary positions, attention, a product, norm, SwiGLU.
// `part` is what the last layer adds to the hidden states (null before the first one), and becomes
// what this one does.
template <class T>
void team_layer(const Decode& d, const Layer& layer, const Cache& cache, const Units& u,
                const float* added, float* part, Quantised& q) {
  const Store<T> keys{static_cast<T*>(cache.keys), cache.key_head, cache.key_slot};
  const Store<T> values{static_cast<T*>(cache.values), cache.value_head, cache.value_slot};
  const int64_t m = d.tokens, row = (d.heads + 2 * d.kv_heads) * d.dim;
  float *mixed = part + m * d.size, *seen = mixed + m * row;
  float *both = seen + m * d.heads * d.dim, *active = both + m * 2 * d.inner;
  team_norm(d.hidden, added, m, d.size, layer.norm, d.eps, part);
  barrier();
  team_linear(part, m, layer.qkv, mixed, row, q);
  barrier();
  team_turn(d, mixed, keys, values);
  barrier();
  Attention a{};
  a.query = mixed;
  a.query_row = row;
  a.heads = d.heads;
  a.kv_heads = d.kv_heads;
  a.dim = d.dim;
  a.scaling = layer.scaling;
  a.out = seen;
  team_attend(a, u, keys, values);  // waits at its end
  team_linear(seen, m, layer.out, part, d.size, q);
  barrier();
  team_norm(d.hidden, part, m, d.size, layer.behind_norm, d.eps, part);
  barrier();
  team_linear(part, m, layer.gate_up, both, 2 * d.inner, q);
  barrier();
  team_swiglu(both, m, d.inner, active);
  barrier();
  team_linear(active, m, layer.down, part, d.size, q);
  barrier();
}

template <class T>
void decode(const Decode& d, const Units& u, int threads) {
  static thread_local Quantised kept;
  Quantised& q = kept;
  for (int64_t i = 0; i < d.count; i++) {
    const Layer& one = d.layers[i];
    for (const Matrix* w : {&one.qkv, &one.out, &one.gate_up, &one.down}) make_room(q, d.tokens, *w);
  }
#pragma omp parallel num_threads(threads_of(threads))
  {
    float* part = d.scratch;
    for (int64_t i = 0; i < d.count; i++)
      team_layer<T>(d, d.layers[i], d.caches[i], u, i ? part : nullptr, part, q);
    team_norm(d.hidden, d.count ? part : nullptr, d.tokens, d.size, d.norm, d.eps, d.out);
  }
}

}  // namespace

extern "C" {

// y [m, rows] = x [m, columns] w^T + bias.
void llavakit_linear(const float* x, int64_t m, const Matrix* w, float* y, int threads) {
  static thread_local Quantised kept;
  Quantised& q = kept;
  make_room(q, m, *w);
#pragma omp parallel num_threads(threads_of(threads))
  team_linear(x, m, *w, y, w->rows, q);
}

// All layers of a decoder and the norm behind them, in one parallel region.
void llavakit_decode(const Decode* d, const Units* u, int threads) {
  if (d->kind == FP32)
    decode<float>(*d, *u, threads);
  else
    decode<uint16_t>(*d, *u, threads);
}

// Stores keys and values of a packed pass, then attends.
void llavakit_attend(const Attention* a, const Units* u, int threads) {
  if (a->kind == FP32)
    attend<float>(*a, *u, threads);
  else
    attend<uint16_t>(*a, *u, threads);
}

// Weights [rows, columns] in fp32 or bf16, all finite -> their panels and scales.
void llavakit_pack(const void* w, int kind, int64_t rows, int64_t columns, int64_t groups, int bits,
                   uint8_t* data, uint16_t* scales, int threads) {
#pragma omp parallel for num_threads(threads_of(threads)) schedule(static)
  for (int64_t p = 0; p < (rows + PANEL - 1) / PANEL; p++)
    if (kind == FP32)
      pack_panel(static_cast<const float*>(w), rows, columns, groups, bits, p, data, scales);
    else
      pack_panel(static_cast<const uint16_t*>(w), rows, columns, groups, bits, p, data, scales);
}

}  // extern "C"
