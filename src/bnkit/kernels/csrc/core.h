// What the operators (operators.cpp) and the vector kernels (vectors.cpp) say to each other.
//
// The vector kernels are compiled once for each kind of CPU, and the best is picked when the
// library runs. So this header holds plain data only: an inline function or template in it could
// be emitted with AVX-512 instructions and then be linked into what runs everywhere.

#pragma once

#include <stdint.h>

namespace bnkit {

// As in kernels/activations.py; of `gate`, for gradients only, the residual is relu's output.
enum Activation { NONE, RELU, LEAKY_RELU, RELU6, SILU, HARDSWISH, GELU, SIGMOID, TANH, GATE };
enum Type { FLOAT, DOUBLE, BFLOAT16, HALF };
// Coefficients of each column, one row of the table each.
enum Coefficient { MEAN, INVSTD, WEIGHT, BIAS, SLOPE, MEAN_DZ, MEAN_DZ_X_HAT, COEFFICIENTS };

struct Range {
  int64_t begin, end;
};

// Numbers of each channel, of any type; null where there are none.
struct Values {
  void* data;
  Type type;
};

// One call. The value (row, column, s) lies at (row · columns + column) · space + s.
//
// Planes: a column is a channel, and `space` values of it are on end. Rows: space is 1, and a row
// holds `fold` pixels of all channels (channels-last), or `repeat` values of each channel (feature
// maps too small for vectors of their own): column (f · channels + c) · repeat + s is of channel c.
// `tail` columns are in a last, incomplete row. "Arithmetic" is float, for double double.
struct Job {
  int64_t rows, columns, space, channels, fold, repeat, tail;
  int64_t count;   // values of each channel
  int64_t stride;  // of the table and of partial sums: columns, and room for a vector
  const void *x, *dy, *residual;
  void *out, *dresidual;  // y or dx; null where not wanted
  Values weight, bias, dweight, dbias;
  void *mean, *variance;  // (channels), in arithmetic: read, or written in training
  void* table;            // (COEFFICIENTS, stride), in arithmetic
  double eps;
  Activation activation;
  bool training;
};

// Two sums of each column over `count` rows (planes: values): mean and squared deviations in the
// forward pass, Σdz and Σdz·x̂ in the backward pass. Behind each lies room for what its sums round
// off.
struct Partial {
  int64_t count;
  int64_t columns;
  double *first, *second;  // (2, stride)
};

struct Running {
  Values mean, variance;
  double momentum, correction;  // count / (count − 1)
  bool guarded;
};

// Of one element type. `columns` are columns, in planes channels; `rows` rows, in planes the values
// of a channel, counted through all samples; `channels` channels. Columns begin at multiples of 16.
struct Kernels {
  void (*moments)(const Job&, Range columns, Range rows, const Partial&);
  void (*finish_moments)(const Job&, Range channels, const Partial*, int64_t partials);
  void (*prepare)(const Job&, Range channels);
  void (*forward)(const Job&, Range columns, Range rows);
  void (*gradients)(const Job&, Range columns, Range rows, const Partial&);
  void (*finish_gradients)(const Job&, Range channels, const Partial*, int64_t partials);
  void (*backward)(const Job&, Range columns, Range rows);
  bool (*track)(const Job&, const Running&);  // false: not finite, and so, if guarded, left
  void (*widen)(Values, void* arithmetic, int64_t count);
};

// By Type; each defined by vectors.cpp compiled for it.
extern const Kernels baseline[4], avx2[4], avx512[4];

}  // namespace bnkit
