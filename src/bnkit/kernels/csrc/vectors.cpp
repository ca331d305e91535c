// The kernels, over vectors of as many bytes as the CPU has that this file is compiled for.
//
// Written with the compilers' vector types, without torch's headers or C++'s, so that nothing that
// is compiled here leaves this file but the table at its end (-DCAPABILITY names it).
//
// Sums are taken in the dtype of the arithmetic over a few values, and then in float64.
// The order of all sums is fixed by the shape and the number of parts, so results are the same to
// the bit from call to call.

#include "core.h"

#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ALWAYS inline __attribute__((always_inline))  // lanes are never passed through memory
#define INLINE static ALWAYS

namespace bnkit {
namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int STRIP = BYTES == 64 ? 4 : 2;  // vectors side by side whose coefficients fit registers
constexpr int64_t TILE = 32;   // rows of a strip that stay in the first cache
constexpr int64_t FEW = 4;     // rows that are worth the coefficients of a strip
constexpr int64_t FIRST = 4;   // rows whose mean is a fair first guess
// Values that a lane adds up before its sum goes on in float64. Squares about a good level may be
// many (the variance stays within 2e-7); gradients cancel, and torch sums short planes one by one.
constexpr int64_t SQUARES = 64, GRADIENTS = 8;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// --- lanes

struct bfloat16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(BYTES)));
  typedef int32_t I __attribute__((vector_size(BYTES)));
  typedef uint32_t U __attribute__((vector_size(BYTES)));
  typedef uint16_t H __attribute__((vector_size(BYTES / 2)));
  static constexpr int count = BYTES / 4, mantissa = 23, exponent = 127;
  static constexpr float shifter = 0x1.8p23f;  // what is added to it is rounded to an integer
};

template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(BYTES)));
  typedef int64_t I __attribute__((vector_size(BYTES)));
  static constexpr int count = BYTES / 8, mantissa = 52, exponent = 1023;
  static constexpr double shifter = 0x1.8p52;
};

using F = Lanes<float>;
using D = Lanes<double>;

template <class T>
struct Arithmetic {
  using A = float;
};
template <>
struct Arithmetic<double> {
  using A = double;
};

template <class To, class From>
INLINE To bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from, "same size");
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class A>
INLINE typename Lanes<A>::V all(A value) {
  return value - typename Lanes<A>::V{};
}

template <class A>
INLINE typename Lanes<A>::I first_lanes(int64_t n) {
  typename Lanes<A>::I index;
  for (int i = 0; i < Lanes<A>::count; ++i) index[i] = i;
  return index < typename Lanes<A>::I{} + int(n);
}

// --- memory

template <class W, class P>
INLINE W read(const P* p) {
  W w;
  memcpy(&w, p, sizeof w);
  return w;
}

INLINE F::V widened(F::H h, bfloat16) {
  return bits<F::V>(__builtin_convertvector(h, F::U) << 16);
}

INLINE F::H narrowed(F::V v, bfloat16) {  // to the nearest, ties to even; NaN stays NaN
  F::U u = bits<F::U>(v);
  F::U rounded = u + 0x7fff + ((u >> 16) & 1);
  rounded = v != v ? u | 0x400000 : rounded;
  return __builtin_convertvector(rounded >> 16, F::H);
}

#if defined(__AVX512F__)
INLINE F::V widened(F::H h, half) { return bits<F::V>(_mm512_cvtph_ps(bits<__m256i>(h))); }
INLINE F::H narrowed(F::V v, half) {
  return bits<F::H>(_mm512_cvtps_ph(bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
INLINE F::V widened(F::H h, half) { return bits<F::V>(_mm256_cvtph_ps(bits<__m128i>(h))); }
INLINE F::H narrowed(F::V v, half) {
  return bits<F::H>(_mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
// As in c10/util/Half.h, where each step is explained.
INLINE F::V widened(F::H h, half) {
  F::U w = __builtin_convertvector(h, F::U) << 16, twice = w + w, sign = w & 0x80000000u;
  F::U normal = bits<F::U>(bits<F::V>((twice >> 4) + (0xE0u << 23)) * 0x1p-112f);
  F::U small = bits<F::U>(bits<F::V>((twice >> 17) | (126u << 23)) - 0.5f);
  return bits<F::V>(sign | (twice < (1u << 27) ? small : normal));
}
INLINE F::H narrowed(F::V v, half) {
  F::U w = bits<F::U>(v), twice = w + w, sign = w & 0x80000000u;
  F::V base = bits<F::V>(w & 0x7fffffffu) * 0x1p+112f * 0x1p-110f;
  F::U exponent = twice & 0xFF000000u;
  exponent = exponent < 0x71000000u ? F::U{} + 0x71000000u : exponent;
  F::U u = bits<F::U>(bits<F::V>((exponent >> 1) + 0x07800000u) + base);
  F::U magnitude = ((u >> 13) & 0x7C00u) + (u & 0x0FFFu);
  magnitude = twice > 0xFF000000u ? F::U{} + 0x7E00u : magnitude;
  return __builtin_convertvector((sign >> 16) | magnitude, F::H);
}
#endif

INLINE F::V load(const float* p) { return read<F::V>(p); }
INLINE D::V load(const double* p) { return read<D::V>(p); }
INLINE void store(float* p, F::V v) { memcpy(p, &v, sizeof v); }
INLINE void store(double* p, D::V v) { memcpy(p, &v, sizeof v); }
template <class T>
INLINE F::V load(const T* p) {
  return widened(read<F::H>(p), T{});
}
template <class T>
INLINE void store(T* p, F::V v) {
  F::H h = narrowed(v, T{});
  memcpy(p, &h, sizeof h);
}

// The first n values, the other lanes 0.
#if defined(__AVX512F__)
INLINE F::V load(const float* p, int64_t n) {
  return bits<F::V>(_mm512_maskz_loadu_ps((1u << n) - 1, p));
}
INLINE D::V load(const double* p, int64_t n) {
  return bits<D::V>(_mm512_maskz_loadu_pd((1u << n) - 1, p));
}
INLINE void store(float* p, F::V v, int64_t n) {
  _mm512_mask_storeu_ps(p, (1u << n) - 1, bits<__m512>(v));
}
INLINE void store(double* p, D::V v, int64_t n) {
  _mm512_mask_storeu_pd(p, (1u << n) - 1, bits<__m512d>(v));
}
template <class T>
INLINE F::V load(const T* p, int64_t n) {
  return widened(bits<F::H>(_mm256_maskz_loadu_epi16((1u << n) - 1, p)), T{});
}
template <class T>
INLINE void store(T* p, F::V v, int64_t n) {
  _mm256_mask_storeu_epi16(p, (1u << n) - 1, bits<__m256i>(narrowed(v, T{})));
}
#else
template <class T>
INLINE typename Lanes<typename Arithmetic<T>::A>::V load(const T* p, int64_t n) {
  T copy[Lanes<typename Arithmetic<T>::A>::count] = {};
  for (int64_t i = 0; i < n; ++i) copy[i] = p[i];
  return load(copy);
}
template <class T, class V>
INLINE void store(T* p, V v, int64_t n) {
  T copy[sizeof(v) / sizeof(typename Arithmetic<T>::A)];
  store(copy, v);
  for (int64_t i = 0; i < n; ++i) p[i] = copy[i];
}
#if defined(__AVX2__)
INLINE F::V load(const float* p, int64_t n) {
  return bits<F::V>(_mm256_maskload_ps(p, bits<__m256i>(first_lanes<float>(n))));
}
INLINE D::V load(const double* p, int64_t n) {
  return bits<D::V>(_mm256_maskload_pd(p, bits<__m256i>(first_lanes<double>(n))));
}
INLINE void store(float* p, F::V v, int64_t n) {
  _mm256_maskstore_ps(p, bits<__m256i>(first_lanes<float>(n)), bits<__m256>(v));
}
INLINE void store(double* p, D::V v, int64_t n) {
  _mm256_maskstore_pd(p, bits<__m256i>(first_lanes<double>(n)), bits<__m256d>(v));
}
#endif
#endif

// All lanes, or, at an END, the first n.
template <bool END, class T>
INLINE typename Lanes<typename Arithmetic<T>::A>::V take(const T* p, int64_t n) {
  return END ? load(p, n) : load(p);
}
template <bool END, class T, class V>
INLINE void give(T* p, V v, int64_t n) {
  END ? store(p, v, n) : store(p, v);
}

// float lanes as two vectors of double; double lanes are one.
struct Wide {
  D::V low, high;
};
INLINE Wide wide(F::V v) {
  typedef float Half __attribute__((vector_size(BYTES / 2)));
  Half halves[2];
  memcpy(halves, &v, sizeof v);
  return {__builtin_convertvector(halves[0], D::V), __builtin_convertvector(halves[1], D::V)};
}
INLINE void add(double* sums, F::V v) {
  Wide w = wide(v);
  store(sums, load(sums) + w.low);
  store(sums + D::count, load(sums + D::count) + w.high);
}
INLINE F::V narrow(const double* p, F::V) {
  typedef float Half __attribute__((vector_size(BYTES / 2)));
  Half halves[2] = {__builtin_convertvector(load(p), Half),
                    __builtin_convertvector(load(p + D::count), Half)};
  return read<F::V>(halves);
}
INLINE D::V narrow(const double* p, D::V) { return load(p); }
INLINE void add(double* sums, D::V v) { store(sums, load(sums) + v); }

// The same for long sums. Of float64 values, what each addition rounds off is kept (Knuth's TwoSum):
// a sum of thousands of them would be no better than its last digits.
INLINE void add(double* sums, double*, F::V v) { add(sums, v); }
INLINE void add(double* sums, double* lost, D::V v) {
  D::V before = load(sums), after = before + v, added = after - before;
  store(sums, after);
  D::V off = (before - (after - added)) + (v - added);
  add(lost, off - off == 0 ? off : D::V{});  // infinities lose nothing
}

INLINE double total(D::V v) {  // pairwise
  double each[D::count];
  store(each, v);
  for (int n = D::count / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) each[i] += each[i + n];
  return each[0];
}
INLINE double total(F::V v) {
  Wide w = wide(v);
  return total(w.low + w.high);
}

// --- elementary functions: NaN stays NaN, and at infinity each has its limit

template <class A, int N, class V>
INLINE V polynomial(const A (&coefficients)[N], V t) {
  V result = all<A>(coefficients[N - 1]);
  for (int i = N - 2; i >= 0; --i) result = result * t + coefficients[i];
  return result;
}

// (exp(r) − 1) / r for |r| ≤ ln 2 / 2: its series.
constexpr float EXP_F[] = {1.f,         1.f / 2,    1.f / 6,     1.f / 24,
                           1.f / 120,   1.f / 720,  1.f / 5040,  1.f / 40320};
constexpr double EXP_D[] = {1.,           1. / 2,        1. / 6,          1. / 24,
                            1. / 120,     1. / 720,      1. / 5040,       1. / 40320,
                            1. / 362880,  1. / 3628800,  1. / 39916800,   1. / 479001600,
                            1. / 6227020800., 1. / 87178291200.};
// (1 + 2x)·exp(x²)·erfc(x) in powers of t = (x − 3)/(x + 3), interpolated at Chebyshev's nodes; the
// form is that of Shepherd and Laframboise 1981. Relative errors 7e-9 and 1e-17.
constexpr float ERFC_F[] = {
    1.2530080563514496f,   -0.13562110005839803f, -0.047562156146354076f,  0.1296447209153884f,
    -0.11927528136881009f, 0.06831319671956372f,  -0.023763559702172088f,  0.0025067786718598333f,
    0.001875060245867973f, -0.0007340820503933423f, -9.25376912641456e-05f, 8.007454974776248e-05f};
constexpr double ERFC_D[] = {
    1.2530080582697296,      -0.13562110612458117,    -0.04756229435345087,
    0.1296451587027606,      -0.11927366341530699,    0.06830802734397848,
    -0.023770514918645888,   0.002529391816066239,    0.0018886903591561553,
    -0.0007798322721083991,  -0.00010515979981501177, 0.00012509935235563107,
    4.949484992570595e-06,   -2.0100567931289227e-05, -7.315105164159059e-07,
    3.4724146028756853e-06,  3.568383915399215e-07,   -6.166496077604346e-07,
    -1.4160064940265918e-07, 1.0187000600072834e-07,  4.1807846988455305e-08,
    -1.3326364813003607e-08, -8.500397929772389e-09,  9.885798831138935e-10,
    8.864219016426661e-10};

INLINE F::V exp_series(F::V r) { return polynomial(EXP_F, r); }
INLINE D::V exp_series(D::V r) { return polynomial(EXP_D, r); }
INLINE F::V erfc_series(F::V t) { return polynomial(ERFC_F, t); }
INLINE D::V erfc_series(D::V t) { return polynomial(ERFC_D, t); }

template <class A, class V>
INLINE V within(V v, A bound) {
  v = v > bound ? all<A>(bound) : v;
  return v < -bound ? all<A>(-bound) : v;
}

template <class A>
struct Split {
  typename Lanes<A>::I n;
  typename Lanes<A>::V growth;
};

// n and exp(r) − 1, where v = n·ln 2 + r and n is an integer.
template <class A, class V>
INLINE Split<A> split(V v) {
  using I = typename Lanes<A>::I;
  constexpr A coarse = A(0.693359375);  // ln 2 but for its last digits: times an integer, exact
  constexpr A fine = A(0.69314718055994530942 - 0.693359375);
  V shifted = v * A(1.4426950408889634074) + Lanes<A>::shifter;
  V n = shifted - Lanes<A>::shifter;
  V r = v - n * coarse - n * fine;
  return {bits<I>(shifted) - bits<I>(all<A>(Lanes<A>::shifter)), r * exp_series(r)};
}

template <class A>
INLINE typename Lanes<A>::V power_of_two(typename Lanes<A>::I n) {
  return bits<typename Lanes<A>::V>((n + Lanes<A>::exponent) << Lanes<A>::mantissa);
}

template <class A, class V>
INLINE V exponential(V v) {
  Split<A> s = split<A>(within<A>(v, sizeof(A) == 4 ? A(120) : A(800)));  // beyond, ∞ and 0
  auto first = s.n >> 1;  // 2ⁿ in two factors, because n may leave the range
  return (s.growth + A(1)) * power_of_two<A>(first) * power_of_two<A>(s.n - first);
}

template <class A, class V>
INLINE V sigmoid(V v) {
  return A(1) / (exponential<A>(-v) + A(1));
}

template <class A, class V>
INLINE V hyperbolic_tangent(V v) {  // (exp(2v) − 1) / (exp(2v) + 1)
  Split<A> s = split<A>(within<A>(v + v, A(40)));  // where it is 1
  V scale = power_of_two<A>(s.n);
  V growth = scale * s.growth + (scale - A(1));
  return growth / (growth + A(2));
}

template <class A, class V>
INLINE V normal_density(V v) {
  return exponential<A>(v * v * A(-0.5)) * A(0.39894228040143267794);
}

template <class A, class V>
INLINE V normal_distribution(V v) {  // ½·erfc(−v/√2), of equal relative error in both tails
  V x = within<A>((v < A(0) ? -v : v) * A(0.70710678118654752440), A(120));
  V tail = erfc_series((x - A(3)) / (x + A(3))) * exponential<A>(v * v * A(-0.5)) * A(0.5) /
           (x + x + A(1));
  return v < A(0) ? tail : A(1) - tail;
}

// --- activations: as in kernels/activations.py, at kinks and for NaN too

template <class A, class V>
__attribute__((noinline)) V activate_by_exponential(V z, Activation activation) {
  switch (activation) {
    case SILU:
      return z * sigmoid<A>(z);
    case GELU:
      return z * normal_distribution<A>(z);
    case SIGMOID:
      return sigmoid<A>(z);
    default:
      return hyperbolic_tangent<A>(z);
  }
}

template <class A, class V>
__attribute__((noinline)) V slope_by_exponential(V z, Activation activation) {
  V y;
  switch (activation) {
    case SILU:
      y = sigmoid<A>(z);
      return y * (z * (A(1) - y) + A(1));
    case GELU:
      return normal_distribution<A>(z) + z * normal_density<A>(z);
    case SIGMOID:
      y = sigmoid<A>(z);
      return (A(1) - y) * y;
    default:
      y = hyperbolic_tangent<A>(z);
      return A(1) - y * y;
  }
}

// ACTIVATION is NONE, RELU, GATE, or TANH for all others, which `other` tells apart.
template <Activation ACTIVATION, class A, class V>
INLINE V activate(V z, Activation other) {
  const V zero = {};
  if (ACTIVATION == NONE) return z;
  if (ACTIVATION == RELU) return z <= zero ? zero : z;
  if (other == LEAKY_RELU) return z > zero ? z : z * A(0.01);
  if (other == RELU6) {
    V capped = z >= A(6) ? all<A>(6) : z;
    return z <= zero ? zero : capped;
  }
  if (other == HARDSWISH) {
    V ramp = z * A(1. / 6) + A(0.5);
    ramp = z >= A(3) ? all<A>(1) : ramp;
    return z * (z <= A(-3) ? zero : ramp);
  }
  return activate_by_exponential<A>(z, other);
}

// dy · f′(z); for GATE z is relu's output.
template <Activation ACTIVATION, class A, class V>
INLINE V gradient(V dy, V z, Activation other) {
  const V zero = {};
  if (ACTIVATION == NONE) return dy;
  if (ACTIVATION == RELU || ACTIVATION == GATE) return z <= zero ? zero : dy;
  if (other == LEAKY_RELU) return z > zero ? dy : dy * A(0.01);
  if (other == RELU6) {
    V below = z >= A(6) ? zero : dy;
    return z <= zero ? zero : below;
  }
  if (other == HARDSWISH) {
    V slope = dy * (z * A(1. / 3) + A(0.5));
    slope = z >= A(3) ? dy : slope;
    return z <= A(-3) ? zero : slope;
  }
  return dy * slope_by_exponential<A>(z, other);
}

// --- what is done with one vector: i is the place of its first value; at an END it has n values

// All of a call, typed.
template <class T>
struct Call {
  using A = typename Arithmetic<T>::A;
  using V = typename Lanes<A>::V;

  const Job& job;
  const T *x, *dy, *residual;
  T *out, *dresidual;
  const A* table;
  int64_t ahead;  // how far off the values are that are wanted soon; 0 where the CPU finds them

  explicit Call(const Job& j)
      : job(j),
        x((const T*)j.x),
        dy((const T*)j.dy),
        residual((const T*)j.residual),
        out((T*)j.out),
        dresidual((T*)j.dresidual),
        table((const A*)j.table),
        ahead(distance(j)) {}

  // Short planes of one channel, and strips of wide rows, lie apart: no CPU guesses where.
  static int64_t distance(const Job& j) {
    constexpr int64_t L = Lanes<A>::count;
    if (j.space > 1) return j.space < 64 * L ? (j.space < 8 * L ? 2 : 1) * j.columns * j.space : 0;
    return j.columns > STRIP * L ? 6 * j.columns : 0;
  }
  ALWAYS void fetch(const T* p) const {
    if (ahead) __builtin_prefetch(p + ahead);
  }

  // Of as many columns as there are lanes; in planes of one channel, in all lanes.
  ALWAYS V coefficient(Coefficient k, int64_t column) const {
    const A* place = table + k * job.stride + column;
    return job.space > 1 ? all<A>(*place) : load(place);
  }
};

template <class T>
struct Moments {
  using C = Call<T>;
  using A = typename C::A;
  using V = typename C::V;

  V level = {}, sum = {}, products = {};

  ALWAYS Moments(const C&, int64_t) {}

  template <bool END>
  ALWAYS void step(const C& call, int64_t i, int64_t n) {
    call.fetch(call.x + i);
    V d = take<END>(call.x + i, n) - level;
    if (END) d = first_lanes<A>(n) ? d : V{};
    sum += d;
    products += d * d;
  }
};

template <class T, Activation ACTIVATION>
struct Forward {
  using C = Call<T>;
  using A = typename C::A;
  using V = typename C::V;

  V mean, invstd, weight, bias;

  ALWAYS Forward(const C& call, int64_t column)
      : mean(call.coefficient(MEAN, column)),
        invstd(call.coefficient(INVSTD, column)),
        weight(call.coefficient(WEIGHT, column)),
        bias(call.coefficient(BIAS, column)) {}

  template <bool END>
  ALWAYS void step(const C& call, int64_t i, int64_t n) {
    V z = (take<END>(call.x + i, n) - mean) * invstd * weight + bias;
    if (call.residual) z += take<END>(call.residual + i, n);
    give<END>(call.out + i, activate<ACTIVATION, A>(z, call.job.activation), n);
  }
};

template <class T, Activation ACTIVATION>
struct Gradients {
  using C = Call<T>;
  using A = typename C::A;
  using V = typename C::V;

  Forward<T, ACTIVATION> to;
  V sum = {}, products = {};

  ALWAYS Gradients(const C& call, int64_t column) : to(call, column) {}

  template <bool END>
  ALWAYS V x_hat(const C& call, int64_t i, int64_t n) const {
    return (take<END>(call.x + i, n) - to.mean) * to.invstd;
  }

  // ∂ℓ/∂z, with z computed again exactly as in the forward pass.
  template <bool END>
  ALWAYS V dz(const C& call, V h, int64_t i, int64_t n) const {
    V z = h;
    if (ACTIVATION == GATE) z = take<END>(call.residual + i, n);
    if (ACTIVATION == RELU || ACTIVATION == TANH) {
      z = h * to.weight + to.bias;
      if (call.residual) z += take<END>(call.residual + i, n);
    }
    return gradient<ACTIVATION, A>(take<END>(call.dy + i, n), z, call.job.activation);
  }

  template <bool END>
  ALWAYS void step(const C& call, int64_t i, int64_t n) {
    call.fetch(call.x + i);
    call.fetch(call.dy + i);
    V h = x_hat<END>(call, i, n), d = dz<END>(call, h, i, n);
    if (END) {
      h = first_lanes<A>(n) ? h : V{};
      d = first_lanes<A>(n) ? d : V{};
    }
    sum += d;
    products += d * h;
  }
};

template <class T, Activation ACTIVATION>
struct Backward {
  using C = Call<T>;
  using A = typename C::A;
  using V = typename C::V;

  Gradients<T, ACTIVATION> to;
  V mean_dz, mean_dz_x_hat, slope;

  ALWAYS Backward(const C& call, int64_t column)
      : to(call, column),
        mean_dz(call.coefficient(MEAN_DZ, column)),
        mean_dz_x_hat(call.coefficient(MEAN_DZ_X_HAT, column)),
        slope(call.coefficient(SLOPE, column)) {}

  template <bool END>
  ALWAYS void step(const C& call, int64_t i, int64_t n) {
    V h = to.template x_hat<END>(call, i, n), d = to.template dz<END>(call, h, i, n);
    if (call.dresidual) give<END>(call.dresidual + i, d, n);
    if (call.job.training) d = d - mean_dz - h * mean_dz_x_hat;
    give<END>(call.out + i, d * slope, n);
  }
};

// N vectors side by side: of other columns in rows, in planes of the same channel, so that sums
// need not wait for each other.
template <class Step, int N>
struct Strip {
  using C = typename Step::C;
  using V = typename Step::V;
  static constexpr int64_t L = sizeof(V) / sizeof(typename Step::A), WIDTH = N * L;

  Step first;
  Strip<Step, N - 1> others;

  ALWAYS Strip(const C& call, int64_t column)
      : first(call, column), others(call, call.job.space > 1 ? column : column + L) {}

  ALWAYS void step(const C& call, int64_t i) {
    first.template step<false>(call, i, L);
    others.step(call, i + L);
  }
  ALWAYS void end(const C& call, int64_t i, int64_t n) {  // n < WIDTH values
    if (n >= L) {
      first.template step<false>(call, i, L);
      others.end(call, i + L, n - L);
    } else if (n > 0) {
      first.template step<true>(call, i, n);
    }
  }
  template <class F>
  ALWAYS void each(int64_t column, F f) {
    f(first, column);
    others.each(column + L, f);
  }
};

template <class Step>
struct Strip<Step, 0> {
  ALWAYS Strip(const typename Step::C&, int64_t) {}
  ALWAYS void step(const typename Step::C&, int64_t) {}
  ALWAYS void end(const typename Step::C&, int64_t, int64_t) {}
  template <class F>
  ALWAYS void each(int64_t, F) {}
};

// The sums of all vectors of a strip.
template <class S>
INLINE typename S::V sums(S& strip) {
  typename S::V sum = {};
  strip.each(0, [&](auto& step, int64_t) { sum += step.sum; });
  return sum;
}
template <class S>
INLINE typename S::V products(S& strip) {
  typename S::V sum = {};
  strip.each(0, [&](auto& step, int64_t) { sum += step.products; });
  return sum;
}
template <class S>
INLINE void restart(S& strip) {
  strip.each(0, [&](auto& step, int64_t) { step.sum = step.products = typename S::V{}; });
}
template <class S, class A>
INLINE void restart(S& strip, A level) {
  restart(strip);
  strip.each(0, [&](auto& step, int64_t) { step.level = all(level); });
}

// --- planes

struct Piece {
  int64_t place, size;
};

// Call f with the values of a channel, a range counted through all samples, piece by piece: as far
// as they are on end, and at most `limit`.
template <class F>
INLINE void pieces(const Job& job, int64_t channel, Range values, int64_t limit, F f) {
  for (int64_t n = values.begin / job.space; n * job.space < values.end; ++n) {
    int64_t s = most(values.begin - n * job.space, 0);
    int64_t end = least(values.end - n * job.space, job.space);
    int64_t plane = (n * job.columns + channel) * job.space;
    for (; s < end; s += limit) f(Piece{plane + s, least(end - s, limit)});
  }
}

// Returns how many values the lane with the most of them got: a short plane fills few lanes.
template <class S, class C>
INLINE int64_t along(S& strip, const C& call, Piece p) {
  int64_t i = 0;
  for (; i + S::WIDTH <= p.size; i += S::WIDTH) strip.step(call, p.place + i);
  strip.end(call, p.place + i, p.size - i);
  return (p.size + S::WIDTH - 1) / S::WIDTH;
}

// The moments of `count` values, merged (Chan) with those of others, given as sums about a level.
struct Merged {
  double mean = 0, squares = 0;
  int64_t count = 0;

  void add(int64_t more, double level, double sum, double of_squares) {
    double about = sum / more, gap = level + about - mean, share = double(more) / (count + more);
    mean += gap * share;
    squares += (of_squares - about * sum) + gap * gap * (count * share);
    count += more;
  }
};

// The mean of the first few values. Of equal ones it is just that, so they have no variance.
template <class T>
INLINE typename Call<T>::A first_guess(const Call<T>& call, Piece p) {
  using Few = Strip<Moments<T>, 4>;
  typename Call<T>::A one = load(call.x + p.place, 1)[0];
  Few few(call, 0);
  restart(few, one);
  p.size = least(p.size, Few::WIDTH);
  along(few, call, p);
  return one + total(sums(few)) / p.size;
}

template <class T>
void moments_of_planes(const Call<T>& call, Range channels, Range values, const Partial& partial) {
  using A = typename Call<T>::A;
  using S = Strip<Moments<T>, 4>;
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    S strip(call, c);
    Merged merged;
    A level = 0;
    int64_t count = 0, of_a_lane = 0;
    bool begun = false;
    pieces(call.job, c, values, SQUARES * S::WIDTH, [&](Piece p) {
      if (!begun) restart(strip, level = first_guess(call, p));
      begun = true;
      of_a_lane += along(strip, call, p);
      count += p.size;
      if (of_a_lane >= SQUARES) {
        merged.add(count, level, total(sums(strip)), total(products(strip)));
        restart(strip, level = A(merged.mean));
        count = of_a_lane = 0;
      }
    });
    if (count) merged.add(count, level, total(sums(strip)), total(products(strip)));
    partial.first[c] = merged.mean;
    partial.second[c] = merged.squares;
  }
}

template <class Step, class T>
void gradients_of_planes(const Call<T>& call, Range channels, Range values, const Partial& partial) {
  using S = Strip<Step, 4>;
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    S strip(call, c);
    double dz[2 * D::count] = {}, dz_x_hat[2 * D::count] = {};
    int64_t of_a_lane = 0;
    pieces(call.job, c, values, GRADIENTS * S::WIDTH, [&](Piece p) {
      of_a_lane += along(strip, call, p);
      if (of_a_lane >= GRADIENTS) {
        add(dz, dz + D::count, sums(strip));
        add(dz_x_hat, dz_x_hat + D::count, products(strip));
        restart(strip);
        of_a_lane = 0;
      }
    });
    add(dz, dz + D::count, sums(strip));
    add(dz_x_hat, dz_x_hat + D::count, products(strip));
    partial.first[c] = total(load(dz) + load(dz + D::count));
    partial.second[c] = total(load(dz_x_hat) + load(dz_x_hat + D::count));
  }
}

// From the end, which was read last and so is still in the cache.
template <class Step, class T>
void change_planes(const Call<T>& call, Range channels, Range values) {
  const int64_t space = call.job.space;
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    Strip<Step, 2> strip(call, c);
    for (int64_t n = (values.end - 1) / space; n >= 0 && (n + 1) * space > values.begin; --n) {
      int64_t s = most(values.begin - n * space, 0), end = least(values.end - n * space, space);
      along(strip, call, Piece{(n * call.job.columns + c) * space + s, end - s});
    }
  }
}

// --- rows: a tile of them at a time, and in it one strip of columns after the other

// Rows of a tile. Of wide rows they are the fewest that are worth the coefficients of their strips:
// memory is then read about as it lies, which is up to three times faster than one strip down many
// rows, whose lines are a page apart.
INLINE int64_t rows_of_tile(const Job& job, int64_t fewest) {
  return most(fewest, least(TILE, fewest * 1024 / job.columns));
}

template <int N>
struct Number {
  static constexpr int value = N;
};

// Call f(N, column, width) for strips of STRIP vectors, then of one, of which the last may end early.
template <class T, class F>
INLINE void strips(Range columns, F f) {
  constexpr int64_t L = Lanes<typename Arithmetic<T>::A>::count;
  int64_t c = columns.begin;
  for (; c + STRIP * L <= columns.end; c += STRIP * L) f(Number<STRIP>(), c, STRIP * L);
  for (; c < columns.end; c += L) f(Number<1>(), c, least(L, columns.end - c));
}

template <class S, class C>
INLINE void down(S& strip, const C& call, Range rows, int64_t column, int64_t width) {
  const int64_t columns = call.job.columns;
  int64_t i = rows.begin * columns + column;
  if (width == S::WIDTH) {
    for (int64_t r = rows.begin; r < rows.end; ++r, i += columns) strip.step(call, i);
  } else {
    for (int64_t r = rows.begin; r < rows.end; ++r, i += columns) strip.end(call, i, width);
  }
}

// The mean of the first few rows, as `first_guess`.
template <class T>
INLINE typename Call<T>::V first_guess(const Call<T>& call, Range rows, int64_t column, int64_t n) {
  using A = typename Call<T>::A;
  const int64_t columns = call.job.columns, few = least(FIRST, rows.end - rows.begin);
  const T* x = call.x + rows.begin * columns + column;
  auto row = [&](int64_t r) {
    return n >= Lanes<A>::count ? load(x + r * columns) : load(x + r * columns, n);
  };
  typename Call<T>::V one = row(0), sum = {};
  for (int64_t r = 1; r < few; ++r) sum += row(r) - one;
  return one + sum * A(1. / few);
}

// Merge sums of `more` rows about a level with the moments of those `before`, of D::count columns.
struct Merging {
  double before, more;

  ALWAYS void operator()(D::V level, D::V sum, D::V of_squares, double* mean, double* squares) const {
    D::V about = sum * (1 / more), of_more = level + about;
    of_squares -= about * sum;
    if (before) {
      double share = more / (before + more);
      D::V gap = of_more - load(mean);
      of_more = load(mean) + gap * share;
      of_squares += load(squares) + gap * gap * (before * share);
    }
    store(mean, of_more);
    store(squares, of_squares);
  }
  ALWAYS void operator()(F::V level, F::V sum, F::V of_squares, double* mean, double* squares) const {
    Wide l = wide(level), s = wide(sum), q = wide(of_squares);
    (*this)(l.low, s.low, q.low, mean, squares);
    (*this)(l.high, s.high, q.high, mean + D::count, squares + D::count);
  }
};

template <class T>
void moments_of_rows(const Call<T>& call, Range columns, Range rows, const Partial& partial) {
  for (Range tile = rows; tile.begin < rows.end; tile.begin = tile.end) {
    tile.end = least(tile.begin + TILE, rows.end);
    const Merging merge{double(tile.begin - rows.begin), double(tile.end - tile.begin)};
    strips<T>(columns, [&](auto number, int64_t column, int64_t width) {
      Strip<Moments<T>, number.value> strip(call, column);
      strip.each(column, [&](auto& step, int64_t c) {
        step.level = merge.before ? narrow(partial.first + c, step.level)
                                  : first_guess(call, tile, c, columns.end - c);
      });
      down(strip, call, tile, column, width);
      strip.each(column, [&](auto& step, int64_t c) {
        merge(step.level, step.sum, step.products, partial.first + c, partial.second + c);
      });
    });
  }
}

template <class Step, class T>
void gradients_of_rows(const Call<T>& call, Range columns, Range rows, const Partial& partial) {
  // Where rows are pixels of many channels, torch's sums are less good, and ours may cost less.
  const bool pixels = call.job.repeat == 1 && call.job.fold == 1;
  const int64_t stride = call.job.stride, depth = pixels ? 2 * GRADIENTS : GRADIENTS;
  double* const both[] = {partial.first, partial.second};
  for (double* sums : both)
    for (int64_t c = columns.begin; c < columns.end; ++c) sums[c] = sums[c + stride] = 0;
  for (Range tile = rows; tile.begin < rows.end; tile.begin = tile.end) {
    tile.end = least(tile.begin + rows_of_tile(call.job, GRADIENTS), rows.end);
    strips<T>(columns, [&](auto number, int64_t column, int64_t width) {
      Strip<Step, number.value> strip(call, column);
      for (Range few = tile; few.begin < tile.end; few.begin = few.end) {
        few.end = least(few.begin + depth, tile.end);
        down(strip, call, few, column, width);
        strip.each(column, [&](auto& step, int64_t c) {
          add(partial.first + c, partial.first + stride + c, step.sum);
          add(partial.second + c, partial.second + stride + c, step.products);
        });
        restart(strip);
      }
    });
  }
  for (double* sums : both)
    for (int64_t c = columns.begin; c < columns.end; ++c) sums[c] += sums[c + stride];
}

template <class Step, class T>
void change_rows(const Call<T>& call, Range columns, Range rows) {
  for (Range tile = rows; tile.end > rows.begin; tile.end = tile.begin) {
    tile.begin = most(tile.end - rows_of_tile(call.job, FEW), rows.begin);
    strips<T>(columns, [&](auto number, int64_t column, int64_t width) {
      Strip<Step, number.value> strip(call, column);
      down(strip, call, tile, column, width);
    });
  }
}

// --- between the passes: all sums become coefficients

// Of a block of channels, the sums of one partial as one number for each channel, at places
// `base`, base + 1, …: where repeated columns begin, else at the channels' own.
INLINE int64_t base_of(const Job& job, Range channels) { return channels.begin * job.repeat; }

INLINE void merge(double* mean, double* squares, const double* other_mean,
                  const double* other_squares, int64_t n, double count, double more) {
  double share = more / (count + more), both = count * share;
  for (int64_t i = 0; i < n; ++i) {
    double gap = other_mean[i] - mean[i];
    mean[i] += gap * share;
    squares[i] += other_squares[i] + gap * gap * both;
  }
}

INLINE void sum_up(double* first, double* second, const double* other_first,
                   const double* other_second, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    first[i] += other_first[i];
    second[i] += other_second[i];
  }
}

// Join columns of the same channel, then partials, in the first partial. MOMENTS or plain sums.
template <bool MOMENTS>
void join(const Job& job, Range channels, const Partial* partials, int64_t count) {
  const int64_t base = base_of(job, channels), n = channels.end - channels.begin;
  double *first = partials[0].first + base, *second = partials[0].second + base;
  double rows = 0;
  for (int64_t k = 0; k < count; ++k) {
    const Partial& p = partials[k];
    double *a = p.first + base, *b = p.second + base, each = double(p.count), of_part = each;
    for (int64_t s = 1; s < job.repeat; ++s, of_part += each) {
      const double share = each / (of_part + each), both = of_part * share;
      for (int64_t i = 0; i < n * job.repeat; i += job.repeat) {
        double gap = a[i + s] - a[i];
        a[i] += MOMENTS ? gap * share : a[i + s];
        b[i] += MOMENTS ? b[i + s] + gap * gap * both : b[i + s];
      }
    }
    for (int64_t i = 0; job.repeat > 1 && i < n; ++i) {
      a[i] = a[i * job.repeat];
      b[i] = b[i * job.repeat];
    }
    for (int64_t f = 1; f < p.columns / (job.channels * job.repeat); ++f, of_part += each) {
      const double *c = a + f * n, *d = b + f * n;
      MOMENTS ? merge(a, b, c, d, n, of_part, each) : sum_up(a, b, c, d, n);
    }
    if (k) MOMENTS ? merge(first, second, a, b, n, rows, of_part) : sum_up(first, second, a, b, n);
    rows += of_part;
  }
}

// Mean and variance of a channel in two passes, as torch does it, one value after the other: for
// what is not finite, where a shifted sum gives NaN for what has a limit.
template <class T>
void exact_moments(const Call<T>& call, int64_t channel, double* mean, double* variance) {
  const Job& job = call.job;
  double sums[2] = {};
  for (int pass = 0; pass < 2; ++pass)
    for (int64_t r = 0; r < job.rows + (job.tail > 0); ++r)
      for (int64_t c = channel * job.repeat; c < (r < job.rows ? job.columns : job.tail);
           c += job.channels * job.repeat)
        for (int64_t s = 0; s < job.repeat * job.space; ++s) {
          double value = load(call.x + (r * job.columns + c) * job.space + s, 1)[0];
          double d = value - (pass ? sums[0] / job.count : 0);
          sums[pass] += pass ? d * d : value;
        }
  *mean = sums[0] / job.count;
  *variance = sums[1] / job.count;
}

// --- the operations of one element type

// Values in arithmetic or in T, to and from arithmetic.
template <class T, class A>
void widen(Values from, A* to, int64_t n) {
  const bool same = from.type == (sizeof(A) == 8 ? DOUBLE : FLOAT);
  if (same) {
    memcpy(to, from.data, n * sizeof(A));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = load((const T*)from.data + i, 1)[0];
  }
}

template <class T, class A>
INLINE void put(Values to, int64_t i, A value) {
  if (to.type == (sizeof(A) == 8 ? DOUBLE : FLOAT)) {
    ((A*)to.data)[i] = value;
  } else {
    store((T*)to.data + i, all(value), 1);
  }
}

template <class T>
struct Operations {
  using A = typename Arithmetic<T>::A;

  static void moments(const Job& job, Range columns, Range rows, const Partial& partial) {
    const Call<T> call(job);
    if (job.space > 1) {
      moments_of_planes(call, columns, rows, partial);
    } else {
      moments_of_rows(call, columns, rows, partial);
    }
  }

  static void finish_moments(const Job& job, Range channels, const Partial* partials, int64_t count) {
    join<true>(job, channels, partials, count);
    const int64_t base = base_of(job, channels), n = channels.end - channels.begin;
    double *mean = partials[0].first + base, *variance = partials[0].second + base;
    int finite = 0;
    for (int64_t i = 0; i < n; ++i) {
      variance[i] = variance[i] > 0 ? variance[i] / job.count : variance[i] - variance[i];
      finite += fabs(mean[i]) <= 1e300 && variance[i] <= 1e300;
    }
    for (int64_t i = 0; finite < n && i < n; ++i) {
      if (!(fabs(mean[i]) <= 1e300 && variance[i] <= 1e300)) {
        exact_moments(Call<T>(job), channels.begin + i, mean + i, variance + i);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      ((A*)job.mean)[channels.begin + i] = A(mean[i]);
      ((A*)job.variance)[channels.begin + i] = A(variance[i]);
    }
  }

  // The table's first columns of a block, as numbers of each channel (see `join`), then spread.
  static A* row(const Job& job, Coefficient k, Range channels) {
    return (A*)job.table + k * job.stride + base_of(job, channels);
  }

  static void spread(const Job& job, Coefficient k, Range channels) {
    A* values = row(job, k, channels);
    const int64_t n = channels.end - channels.begin;
    if (job.repeat > 1) {
      for (int64_t i = n; i-- > 0;)
        for (int64_t s = job.repeat; s-- > 0;) values[i * job.repeat + s] = values[i];
    }
    for (int64_t f = 1; f < job.fold; ++f) memcpy(values + f * n, values, n * sizeof(A));
  }

  static void prepare(const Job& job, Range channels) {
    const int64_t first = channels.begin, n = channels.end - first;
    A *mean = row(job, MEAN, channels), *invstd = row(job, INVSTD, channels),
      *weight = row(job, WEIGHT, channels), *bias = row(job, BIAS, channels),
      *slope = row(job, SLOPE, channels);
    const A* variance = (const A*)job.variance + first;
    memcpy(mean, (const A*)job.mean + first, n * sizeof(A));
    for (int64_t i = 0; i < n; ++i) invstd[i] = A(1 / sqrt(double(variance[i]) + job.eps));
    parameter(job.weight, first, weight, n, 1);
    parameter(job.bias, first, bias, n, 0);
    for (int64_t i = 0; i < n; ++i) slope[i] = invstd[i] * weight[i];
    for (int k = MEAN; k <= SLOPE; ++k) spread(job, Coefficient(k), channels);
  }

  static void parameter(Values values, int64_t first, A* to, int64_t n, A otherwise) {
    if (!values.data) {
      for (int64_t i = 0; i < n; ++i) to[i] = otherwise;
    } else if (values.type == (sizeof(A) == 8 ? DOUBLE : FLOAT)) {
      widen<T>({(A*)values.data + first, values.type}, to, n);
    } else {
      widen<T>({(T*)values.data + first, values.type}, to, n);
    }
  }

  static void forward(const Job& job, Range columns, Range rows) {
    switch (job.activation) {
      case NONE:
        return change<Forward<T, NONE>>(job, columns, rows);
      case RELU:
        return change<Forward<T, RELU>>(job, columns, rows);
      default:
        return change<Forward<T, TANH>>(job, columns, rows);
    }
  }

  static void backward(const Job& job, Range columns, Range rows) {
    switch (job.activation) {
      case NONE:
        return change<Backward<T, NONE>>(job, columns, rows);
      case RELU:
        return change<Backward<T, RELU>>(job, columns, rows);
      case GATE:
        return change<Backward<T, GATE>>(job, columns, rows);
      default:
        return change<Backward<T, TANH>>(job, columns, rows);
    }
  }

  template <class Step>
  static void change(const Job& job, Range columns, Range rows) {
    const Call<T> call(job);
    if (job.space > 1) {
      change_planes<Step>(call, columns, rows);
    } else {
      change_rows<Step>(call, columns, rows);
    }
  }

  static void gradients(const Job& job, Range columns, Range rows, const Partial& partial) {
    switch (job.activation) {
      case NONE:
        return gather<Gradients<T, NONE>>(job, columns, rows, partial);
      case RELU:
        return gather<Gradients<T, RELU>>(job, columns, rows, partial);
      case GATE:
        return gather<Gradients<T, GATE>>(job, columns, rows, partial);
      default:
        return gather<Gradients<T, TANH>>(job, columns, rows, partial);
    }
  }

  template <class Step>
  static void gather(const Job& job, Range columns, Range rows, const Partial& partial) {
    const Call<T> call(job);
    if (job.space > 1) {
      gradients_of_planes<Step>(call, columns, rows, partial);
    } else {
      gradients_of_rows<Step>(call, columns, rows, partial);
    }
  }

  static void finish_gradients(const Job& job, Range channels, const Partial* partials,
                               int64_t count) {
    join<false>(job, channels, partials, count);
    const int64_t base = base_of(job, channels), n = channels.end - channels.begin;
    const double *dz = partials[0].first + base, *dz_x_hat = partials[0].second + base;
    A *means = row(job, MEAN_DZ, channels), *others = row(job, MEAN_DZ_X_HAT, channels);
    for (int64_t i = 0; i < n; ++i) {
      means[i] = A(dz[i] / job.count);
      others[i] = A(dz_x_hat[i] / job.count);
    }
    spread(job, MEAN_DZ, channels);
    spread(job, MEAN_DZ_X_HAT, channels);
    for (int64_t i = 0; i < n; ++i) {
      if (job.dbias.data) put<T>(job.dbias, channels.begin + i, A(dz[i]));
      if (job.dweight.data) put<T>(job.dweight, channels.begin + i, A(dz_x_hat[i]));
    }
  }

  // Running averages, as torch moves them. The table is free then, and holds what they may become.
  static bool track(const Job& job, const Running& running) {
    const Values targets[2] = {running.mean, running.variance};
    const A* batch[2] = {(const A*)job.mean, (const A*)job.variance};
    const double factors[2] = {1, running.correction};
    int64_t finite = 0;
    for (int k = 0; k < 2; ++k) {
      A* candidate = (A*)job.table + k * job.stride;
      widen<T>(targets[k], candidate, job.channels);
      for (int64_t i = 0; i < job.channels; ++i) {
        double value = running.momentum * factors[k] * double(batch[k][i]);
        candidate[i] = A(value + (1 - running.momentum) * double(candidate[i]));
      }
      for (int64_t i = 0; i < job.channels; ++i) {
        A kept = candidate[i];
        if (targets[k].type == HALF) kept = load_back(kept);
        finite += kept - kept == 0;
      }
    }
    const bool good = finite == 2 * job.channels;
    for (int k = 0; k < 2 && (good || !running.guarded); ++k)
      for (int64_t i = 0; i < job.channels; ++i)
        put<T>(targets[k], i, ((A*)job.table)[k * job.stride + i]);
    return good;
  }

  static A load_back(A value) {  // as it will be kept
    T kept;
    store(&kept, all(value), 1);
    return load(&kept, 1)[0];
  }

  static void widen_all(Values from, void* to, int64_t n) { widen<T>(from, (A*)to, n); }

  static constexpr Kernels kernels() {
    return {moments, finish_moments, prepare, forward, gradients, finish_gradients, backward, track,
            widen_all};
  }
};

}  // namespace

extern const Kernels CAPABILITY[4] = {Operations<float>::kernels(), Operations<double>::kernels(),
                                      Operations<bfloat16>::kernels(), Operations<half>::kernels()};

}  // namespace bnkit
