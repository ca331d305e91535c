// torch.ops.bnkit: batch norm over the vector kernels, with gradients recorded here.
//
// Two of the operators serve plain programs (`train`, `infer`), in which a call should cost no more
// than its work. They answer None to what is not theirs (other dtypes, memory with gaps, tensors
// under a transformation or of another class, arguments that do not fit), having changed nothing;
// the caller then turns to torch, whose errors are those that users know. The others are the
// functions of kernels/reference.py for the rules in kernels/autograd.py.

#include "core.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/library.h>

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Maybe = std::optional<Tensor>;

namespace bnkit {
namespace {

// --- the kernels of this CPU

// BNKIT_CPU in the environment names an older one, for tests: "avx2" or "baseline".
const Kernels* kernels_of_cpu() {
  const char* variable = std::getenv("BNKIT_CPU");
  const std::string older = variable ? variable : "";
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (older.empty() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return avx512;
  }
  if (older != "baseline" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return avx2;
  }
#endif
  return baseline;
}

const Kernels* const chosen = kernels_of_cpu();

std::optional<Type> type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return FLOAT;
    case at::kDouble:
      return DOUBLE;
    case at::kBFloat16:
      return BFLOAT16;
    case at::kHalf:
      return HALF;
    default:
      return std::nullopt;
  }
}

at::ScalarType arithmetic_of(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// --- layouts

// Whether the channels (axis 1) are innermost in memory, without gaps.
bool channels_innermost(const Tensor& x) {
  int64_t expected = 1;
  for (int64_t k = 0, dim = x.dim(); k < dim; ++k) {
    int64_t axis = k == 0 ? 1 : k == dim - 1 ? 0 : dim - k;
    if (x.size(axis) != 1 && x.stride(axis) != expected) return false;
    expected *= x.size(axis);
  }
  return true;
}

bool dense(const Tensor& x) { return x.is_contiguous() || channels_innermost(x); }

constexpr int64_t SHORT = 16;  // values of a plane that fill no vectors of their own
constexpr int64_t NARROW = 64;  // channels of a row, as above

Job layout(const Tensor& x) {
  Job job = {};
  int64_t samples = x.size(0), channels = x.size(1), space = x.numel() / (samples * channels);
  job.channels = channels;
  job.count = samples * space;
  job.fold = job.repeat = job.space = 1;
  if (space > 1 && x.is_contiguous()) {
    job.rows = samples;
    if (space < SHORT && channels >= SHORT) {
      job.repeat = space;
      job.columns = channels * space;
    } else {
      job.columns = channels;
      job.space = space;
    }
  } else {
    int64_t pixels = samples * space;
    if (channels < NARROW && channels % 16 && pixels >= 64) {
      job.fold = 1;
      while (job.fold * channels % 16 && job.fold * channels < NARROW) ++job.fold;
    }
    job.rows = pixels / job.fold;
    job.columns = channels * job.fold;
    job.tail = pixels % job.fold * channels;
  }
  job.stride = (job.columns + 31) / 16 * 16;
  return job;
}

// Into which tasks a job is cut: blocks of channels that the caches hold, parts of their rows.
struct Cut {
  int64_t width, blocks, parts;
};

constexpr int64_t CACHED = 1 << 20;      // bytes of a block that is read twice: half of a usual L2
constexpr int64_t WORTHWHILE = 1 << 17;  // bytes that a task should have
constexpr int64_t WIDE = 4096;           // columns whose coefficients and sums the caches hold
constexpr int64_t LANES = 32;            // channels of a block of rows come by so many

Cut cut(const Job& job, int64_t bytes_per_value) {
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  int64_t per_channel = job.count * bytes_per_value, size = per_channel * job.channels;
  bool shared = threads > 1 && size >= 2 * WORTHWHILE;
  int64_t tasks = shared ? std::min<int64_t>(8 * threads, size / WORTHWHILE) : 1;
  int64_t width = job.channels;  // of rows all channels, as far as may be: memory is read as it lies
  if (job.space > 1) {
    width = std::clamp<int64_t>(CACHED / per_channel, 1, (width + tasks - 1) / tasks);
  } else if (job.columns > WIDE) {
    width = WIDE / job.repeat / LANES * LANES;
  }
  int64_t blocks = (job.channels + width - 1) / width;
  bool enough = !shared || blocks >= 2 * int64_t(threads);
  int64_t most = job.space > 1 ? job.count : job.rows;
  return {width, blocks, enough ? 1 : std::min(most, (tasks + blocks - 1) / blocks)};
}

template <class F>
void in_parallel(int64_t tasks, const F& f) {
  if (tasks == 1) return f(0);
  torch_parallel_for(
      0, tasks, 1,
      [](int64_t begin, int64_t end, void* f) {
        for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(f))(i);
      },
      const_cast<F*>(&f));
}

// --- memory

// Blocks for large tensors, kept when the storage of a tensor dies: the system hands out large
// blocks page by page, zeroed, at the first touch, which costs more than the arithmetic, and takes
// them back when they are freed. The next tensor of the same size gets the block.
class Pool {
 public:
  static constexpr int64_t LARGE = 1 << 22;     // bytes; smaller blocks the C library keeps itself
  static constexpr uint64_t FORGOTTEN = 2000;   // loans after which an idle block is not needed

  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: storages may outlive everything else
    return *pool;
  }

  at::DataPtr borrow(int64_t size) {
    Block* block = take(size);
    if (!block) block = fresh(size);
    return {block->memory, block, [](void* b) { instance().keep(static_cast<Block*>(b)); }, at::kCPU};
  }

  int64_t idle() {
    std::lock_guard<std::mutex> lock(mutex_);
    return idle_;
  }
  void limit(int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    trim();
  }
  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!blocks_.empty()) drop();
  }

 private:
  struct Block {
    void* memory;
    int64_t size;
    uint64_t since;  // loans before it became idle
    std::list<Block*>::iterator in_all, in_size;
  };

  // A child of fork must not find the mutex locked by a thread that it does not have.
  Pool() {
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  Block* take(int64_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    ++loans_;
    auto found = by_size_.find(size);
    if (found == by_size_.end()) return nullptr;
    Block* block = found->second.back();
    remove(block);
    return block;
  }

  Block* fresh(int64_t size) {
    constexpr int64_t HUGE_PAGE = 1 << 21;
    auto allocate = [&] { return std::aligned_alloc(HUGE_PAGE, (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE); };
    void* memory = allocate();
    if (!memory) {
      release();
      memory = allocate();
    }
    TORCH_CHECK_WITH(OutOfMemoryError, memory, "no memory for a tensor of ", size, " bytes");
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    return new Block{memory, size, 0, {}, {}};
  }

  void keep(Block* block) {
    std::lock_guard<std::mutex> lock(mutex_);
    block->since = loans_;
    auto& same = by_size_[block->size];
    block->in_size = same.insert(same.end(), block);
    block->in_all = blocks_.insert(blocks_.end(), block);
    idle_ += block->size;
    trim();
  }

  // What has been idle for longest goes first.
  void trim() {
    while (!blocks_.empty() &&
           (idle_ > limit_ || loans_ - blocks_.front()->since > FORGOTTEN)) {
      drop();
    }
  }

  void drop() {
    Block* block = blocks_.front();
    remove(block);
    std::free(block->memory);
    delete block;
  }

  void remove(Block* block) {
    auto& same = by_size_[block->size];
    same.erase(block->in_size);
    if (same.empty()) by_size_.erase(block->size);
    blocks_.erase(block->in_all);
    idle_ -= block->size;
  }

  std::mutex mutex_;
  std::list<Block*> blocks_;  // all that are idle, the longest first
  std::unordered_map<int64_t, std::list<Block*>> by_size_;
  int64_t idle_ = 0, limit_ = int64_t(1) << 30;
  uint64_t loans_ = 0;
};

Tensor recycled_like(const Tensor& x) {
  int64_t size = x.numel() * x.element_size();
  if (size < Pool::LARGE || !x.is_cpu() || !dense(x)) return at::empty_like(x);
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), size, Pool::instance().borrow(size),
      c10::GetCPUAllocator(), /*resizable=*/true);
  auto y = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(c10::DispatchKey::CPU), x.dtype());
  y.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides());
  return y;
}

// --- calls

// Memory of a call, kept by its thread for the next one.
char* scratch(int64_t bytes) {
  constexpr int64_t KEPT = 1 << 20;
  struct Buffer {
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};
    int64_t size = 0;
  };
  thread_local Buffer buffer;
  if (buffer.size < bytes || buffer.size > std::max(bytes, KEPT)) {
    buffer.size = (bytes + 4095) / 4096 * 4096;
    buffer.memory.reset(static_cast<char*>(std::aligned_alloc(64, buffer.size)));
    if (!buffer.memory) throw std::bad_alloc();
  }
  return buffer.memory.get();
}

// One call: what its tensors are, then the passes over them.
class Work {
 public:
  Work(const Tensor& x, const Maybe& weight, const Maybe& bias, double eps, int64_t activation,
       bool training)
      : job_(layout(x)), type_(*type_of(x.scalar_type())), kernels_(chosen[type_]) {
    job_.x = x.const_data_ptr();
    job_.weight = values(weight);
    job_.bias = values(bias);
    job_.eps = eps;
    job_.activation = Activation(activation);
    job_.training = training;
  }

  Job* operator->() { return &job_; }

  static Values values(const Maybe& t) {
    if (!t || !t->defined()) return {};
    return {const_cast<void*>(t->const_data_ptr()), *type_of(t->scalar_type())};
  }
  static Values written(const Tensor& t) {
    return t.defined() ? Values{t.mutable_data_ptr(), *type_of(t.scalar_type())} : Values{};
  }

  void forward() {
    reserve();
    auto gather = [&](Range c, Range r, const Partial& p) { kernels_.moments(job_, c, r, p); };
    auto finish = [&](Range channels) {
      if (job_.training) kernels_.finish_moments(job_, channels, partials_, partials_count_);
      kernels_.prepare(job_, channels);
    };
    auto apply = [&](Range c, Range r) { kernels_.forward(job_, c, r); };
    run([](Range) {}, gather, job_.training, finish, apply);
  }

  void backward() {
    reserve();
    bool sums = job_.training || job_.dweight.data || job_.dbias.data;
    auto prepare = [&](Range channels) { kernels_.prepare(job_, channels); };
    auto gather = [&](Range c, Range r, const Partial& p) { kernels_.gradients(job_, c, r, p); };
    auto finish = [&](Range channels) {
      if (sums) kernels_.finish_gradients(job_, channels, partials_, partials_count_);
    };
    auto apply = [&](Range c, Range r) {
      if (job_.out) kernels_.backward(job_, c, r);
    };
    run(prepare, gather, sums, finish, apply);
  }

  bool track(const Running& running) { return kernels_.track(job_, running); }

 private:
  void reserve() {
    int64_t size = type_ == DOUBLE ? 8 : type_ == FLOAT ? 4 : 2;
    cut_ = cut(job_, size * (1 + (job_.dy != nullptr) + (job_.residual != nullptr)));
    partials_count_ = cut_.parts + (job_.tail > 0);
    int64_t list = (partials_count_ * int64_t(sizeof(Partial)) + 63) / 64 * 64;
    int64_t table = COEFFICIENTS * job_.stride * int64_t(sizeof(double));
    char* memory = scratch(list + table + partials_count_ * 4 * job_.stride * int64_t(sizeof(double)));
    partials_ = reinterpret_cast<Partial*>(memory);
    job_.table = memory + list;
    double* sums = reinterpret_cast<double*>(memory + list + table);
    for (int64_t k = 0; k < partials_count_; ++k, sums += 4 * job_.stride) {
      Range r = rows(k);
      partials_[k] = {r.end - r.begin, k < cut_.parts ? job_.columns : job_.tail, sums,
                      sums + 2 * job_.stride};
    }
  }

  // Of a part; the one after the last has the incomplete row.
  Range rows(int64_t part) const {
    if (part == cut_.parts) return {job_.rows, job_.rows + 1};
    int64_t all = job_.space > 1 ? job_.count : job_.rows;
    return {all * part / cut_.parts, all * (part + 1) / cut_.parts};
  }

  Range channels(int64_t block) const {
    return {block * cut_.width, std::min(job_.channels, (block + 1) * cut_.width)};
  }

  // Call f(columns, rows, partial) for one part of one block; with the last, the incomplete row.
  template <class F>
  void of_part(int64_t block, int64_t part, const F& f) const {
    Range c = channels(block);
    f(Range{c.begin * job_.repeat, c.end * job_.repeat * job_.fold}, rows(part), partials_[part]);
    if (part + 1 == cut_.parts && job_.tail) {
      f(Range{0, job_.tail}, rows(part + 1), partials_[part + 1]);
    }
  }

  // A job in one part reads from memory once: each block goes through all passes in the cache.
  template <class Begin, class Gather, class Finish, class Apply>
  void run(const Begin& begin, const Gather& gather, bool gathers, const Finish& finish,
           const Apply& apply) {
    auto change = [&](Range c, Range r, const Partial&) { apply(c, r); };
    if (cut_.parts == 1) {
      return in_parallel(cut_.blocks, [&](int64_t block) {
        begin(channels(block));
        if (gathers) of_part(block, 0, gather);
        finish(channels(block));
        of_part(block, 0, change);
      });
    }
    auto blocks = [&](const auto& f) {
      for (int64_t block = 0; block < cut_.blocks; ++block) f(channels(block));
    };
    auto parts = [&](const auto& f) {
      in_parallel(cut_.blocks * cut_.parts,
                  [&](int64_t k) { of_part(k / cut_.parts, k % cut_.parts, f); });
    };
    blocks(begin);
    if (gathers) parts(gather);
    blocks(finish);
    parts(change);
  }

  Job job_;
  Type type_;
  const Kernels& kernels_;
  Cut cut_ = {};
  Partial* partials_ = nullptr;
  int64_t partials_count_ = 0;
};

// `t` in the memory order of x: what it is, or a copy.
Tensor arranged(const Tensor& t, const Tensor& x) {
  if (t.strides() == x.strides()) return t;
  if (x.is_contiguous() ? t.is_contiguous() : channels_innermost(t)) return t;
  return at::empty_like(x).copy_(t);
}

// Values of each channel, in the dtype of x or of its arithmetic, as the kernels take them.
Maybe per_channel(const Maybe& t, const Tensor& x) {
  if (!t || !t->defined()) return std::nullopt;
  bool known = t->scalar_type() == x.scalar_type() || t->scalar_type() == arithmetic_of(x);
  Tensor values = known ? *t : t->to(arithmetic_of(x));
  return values.contiguous();
}

Tensor in_arithmetic(const Tensor& t, const Tensor& x) { return t.to(arithmetic_of(x)).contiguous(); }

struct Normalised {
  Tensor y, mean, variance;
};

// As torch has it: channels-last memory stays so in four and five dimensions, not in three.
Tensor as_torch_arranges(const Tensor& y) { return y.dim() == 3 ? y.contiguous() : y; }

// kernels/reference.py: batch_norm_forward, and with `running` what a layer does with the result.
Normalised forward(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& residual,
                   double eps, int64_t activation, Running* running = nullptr, bool* finite = nullptr) {
  Work work(x, weight, bias, eps, activation, true);
  auto options = x.options().dtype(arithmetic_of(x));
  Tensor y = recycled_like(x), mean = at::empty({x.size(1)}, options),
         variance = at::empty({x.size(1)}, options);
  Tensor other = residual && residual->defined() ? arranged(*residual, x) : Tensor();
  work->residual = other.defined() ? other.const_data_ptr() : nullptr;
  work->out = y.mutable_data_ptr();
  work->mean = mean.mutable_data_ptr();
  work->variance = variance.mutable_data_ptr();
  work.forward();
  if (running) *finite = work.track(*running);
  return {as_torch_arranges(y), mean, variance};
}

Tensor inference(const Tensor& x, const Tensor& mean, const Tensor& variance, const Maybe& weight,
                 const Maybe& bias, const Maybe& residual, double eps, int64_t activation) {
  Work work(x, weight, bias, eps, activation, false);
  Tensor y = recycled_like(x), m = in_arithmetic(mean, x), v = in_arithmetic(variance, x);
  Tensor other = residual && residual->defined() ? arranged(*residual, x) : Tensor();
  work->residual = other.defined() ? other.const_data_ptr() : nullptr;
  work->out = y.mutable_data_ptr();
  work->mean = const_cast<void*>(m.const_data_ptr());
  work->variance = const_cast<void*>(v.const_data_ptr());
  work.forward();
  return as_torch_arranges(y);
}

struct Wanted {
  bool x, weight, bias, residual;
};

struct Four {
  Tensor x, weight, bias, residual;
};

// Without an activation the gradient of the residual is dy itself, and is left to the caller.
Four backward(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& variance,
              const Maybe& weight, const Maybe& bias, const Tensor& residual, double eps,
              int64_t activation, bool training, Wanted wanted) {
  Work work(x, weight, bias, eps, activation, training);
  Four gradients;
  bool apart = wanted.residual && activation != NONE;
  if (wanted.x || apart) gradients.x = recycled_like(x);
  if (apart) gradients.residual = recycled_like(x);
  if (wanted.weight) gradients.weight = at::empty_like(*weight);
  if (wanted.bias) gradients.bias = at::empty_like(*bias);
  Tensor given = arranged(dy, x), m = in_arithmetic(mean, x), v = in_arithmetic(variance, x), other;
  if (residual.defined() && activation != NONE) other = arranged(residual, x);
  work->dy = given.const_data_ptr();
  work->residual = other.defined() ? other.const_data_ptr() : nullptr;
  work->out = gradients.x.defined() ? gradients.x.mutable_data_ptr() : nullptr;
  work->dresidual = apart ? gradients.residual.mutable_data_ptr() : nullptr;
  work->dweight = Work::written(gradients.weight);
  work->dbias = Work::written(gradients.bias);
  work->mean = const_cast<void*>(m.const_data_ptr());
  work->variance = const_cast<void*>(v.const_data_ptr());
  work.backward();
  return gradients;
}

// --- the functions of kernels/reference.py, as operators

void check(const Tensor& x) {
  TORCH_CHECK_TYPE(type_of(x.scalar_type()), "`x` is ", x.scalar_type(),
                   ": the core computes float32, float64, bfloat16 and float16");
  TORCH_CHECK_VALUE(x.dim() > 1, "`x` has no channel axis");
}

Tensor to_dense(const Tensor& x) {
  check(x);
  return dense(x) ? x : x.contiguous();
}

std::tuple<Tensor, Tensor, Tensor> forward_operator(const Tensor& x, const Maybe& weight,
                                                    const Maybe& bias, const Maybe& residual,
                                                    double eps, int64_t activation) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor d = to_dense(x);
  TORCH_CHECK_VALUE(x.numel() > 0, "`x` of shape ", x.sizes(), " is empty: it has no statistics");
  auto [y, mean, variance] = forward(d, per_channel(weight, x), per_channel(bias, x), residual, eps,
                                     activation);
  return {y, mean, variance};
}

Tensor inference_operator(const Tensor& x, const Tensor& mean, const Tensor& variance,
                          const Maybe& weight, const Maybe& bias, const Maybe& residual, double eps,
                          int64_t activation) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor d = to_dense(x);
  if (!x.numel()) return at::empty_like(d);
  return inference(d, mean, variance, per_channel(weight, x), per_channel(bias, x), residual, eps,
                   activation);
}

std::tuple<Tensor, Maybe, Maybe, Maybe> backward_operator(
    const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& variance,
    const Maybe& weight, const Maybe& bias, const Maybe& residual, double eps, int64_t activation,
    bool training) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor d = to_dense(x), other = residual.value_or(Tensor());
  Maybe w = per_channel(weight, x), b = per_channel(bias, x);
  Wanted wanted = {true, w.has_value(), b.has_value(), other.defined()};
  auto maybe = [](const Tensor& t) { return t.defined() ? Maybe(t) : Maybe(); };
  if (!x.numel()) {
    return {at::empty_like(d), w ? Maybe(at::zeros_like(*weight)) : Maybe(),
            b ? Maybe(at::zeros_like(*bias)) : Maybe(), maybe(other.defined() ? dy : other)};
  }
  Four g = backward(dy, d, mean, variance, w, b, other, eps, activation, training, wanted);
  auto as = [&](const Tensor& t, const Maybe& like) {
    return t.defined() ? Maybe(t.to(like->scalar_type())) : Maybe();
  };
  if (other.defined() && activation == NONE) g.residual = dy;
  return {g.x, as(g.weight, weight), as(g.bias, bias), maybe(g.residual)};
}

// --- plain programs

constexpr c10::DispatchKeySet PLAIN({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                     c10::DispatchKey::AutocastCPU,
                                     c10::DispatchKey::ADInplaceOrView});

// No other class, no transformation, no tangent; memory that the kernels can read.
bool plain(const Tensor& t) {
  bool others = (t.key_set() - PLAIN).raw_repr() & ~c10::full_backend_mask;
  return t.is_cpu() && !others && t.layout() == at::kStrided && !t._fw_grad(0).defined();
}

bool serves(const Tensor& x) {
  return plain(x) && type_of(x.scalar_type()) && x.dim() > 1 && x.numel() && dense(x) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

// Values of each channel as torch accepts them beside x.
bool fits(const Maybe& t, const Tensor& x) {
  if (!t || !t->defined()) return true;
  bool dtype = t->scalar_type() == x.scalar_type() || t->scalar_type() == arithmetic_of(x);
  return plain(*t) && dtype && t->dim() == 1 && t->size(0) == x.size(1) && t->is_contiguous();
}

bool fits_residual(const Maybe& t, const Tensor& x) {
  if (!t || !t->defined()) return true;
  return plain(*t) && t->scalar_type() == x.scalar_type() && t->sizes() == x.sizes();
}

bool recorded(const Tensor& t) { return t.requires_grad(); }
bool recorded(const Maybe& t) { return t && t->defined() && t->requires_grad(); }

// The gradient where it is part of a graph itself, or of a transformation, by the operator of
// kernels/operators.py, which has a gradient, a fake and a rule for vmap.
Four backward_by_rules(const Tensor& dy, const variable_list& saved, double eps, int64_t activation,
                       bool training) {
  static const char* const names[] = {"",          "relu", "leaky_relu", "relu6", "silu",
                                      "hardswish", "gelu", "sigmoid",    "tanh"};
  static const auto handle =
      c10::Dispatcher::singleton().findSchemaOrThrow("bnkit::batch_norm_backward", "");
  auto maybe = [](const Tensor& t) { return t.defined() ? c10::IValue(t) : c10::IValue(); };
  Tensor gradient = dy, residual = saved[5];
  if (activation == GATE) {
    gradient = at::threshold_backward(dy, residual, 0);
    residual = Tensor();
    activation = NONE;
  }
  torch::jit::Stack stack = {gradient,
                             saved[0],
                             saved[1],
                             saved[2],
                             maybe(saved[3]),
                             maybe(saved[4]),
                             maybe(residual),
                             eps,
                             activation == NONE ? c10::IValue() : c10::IValue(names[activation]),
                             training,
                             "core"};
  handle.callBoxed(stack);
  Four four = {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor(), stack[3].toTensor()};
  if (activation == NONE) four.residual = gradient;
  return four;
}

// What a forward pass is given beside the tensors that have gradients.
struct Given {
  Tensor mean, variance;  // in inference
  double eps;
  int64_t activation;
  bool training;
  Running* running;
  bool* finite;
};

Tensor compute(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& residual,
               Given* given) {
  at::AutoDispatchBelowADInplaceOrView guard;
  if (!given->training) {
    return inference(x, given->mean, given->variance, weight, bias, residual, given->eps,
                     given->activation);
  }
  Normalised result = forward(x, weight, bias, residual, given->eps, given->activation,
                              given->running, given->finite);
  given->mean = result.mean;
  given->variance = result.variance;
  return result.y;
}

struct BatchNorm : torch::autograd::Function<BatchNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Maybe& weight,
                        const Maybe& bias, const Maybe& residual, Given* given) {
    Tensor y = compute(x, weight, bias, residual, given);
    bool has_residual = residual.has_value();
    // The next layer usually keeps y alive, the residual may have no other owner; of ReLU either
    // one shows where the gradient passes.
    bool gated = has_residual && given->activation == RELU;
    auto tensor = [](const Maybe& t) { return t.value_or(Tensor()); };
    Tensor kept = given->activation == NONE ? Tensor() : gated ? y : tensor(residual);
    ctx->save_for_backward(
        {x, given->mean, given->variance, tensor(weight), tensor(bias), kept});
    ctx->saved_data["eps"] = given->eps;
    ctx->saved_data["options"] = 4 * (gated ? int64_t(GATE) : given->activation) +
                                 2 * has_residual + given->training;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    variable_list saved = ctx->get_saved_variables();
    int64_t options = ctx->saved_data["options"].toInt(), activation = options / 4;
    double eps = ctx->saved_data["eps"].toDouble();
    bool training = options & 1;
    size_t edge = 0;  // torch numbers those that were there
    auto wants = [&](bool there) { return there && ctx->needs_input_grad(edge++); };
    bool x = wants(true), weight = wants(saved[3].defined()), bias = wants(saved[4].defined());
    Wanted wanted = {x, weight, bias, wants(options & 2)};
    const Tensor& dy = gradients[0];
    bool simple = !at::GradMode::is_enabled() && plain(dy) &&
                  !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
                  std::all_of(saved.begin(), saved.end(),
                              [](const Tensor& t) { return !t.defined() || plain(t); });
    Four four;
    if (simple) {
      at::AutoDispatchBelowADInplaceOrView guard;
      four = bnkit::backward(dy, saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], eps,
                             activation, training, wanted);
      if (wanted.residual && activation == NONE) four.residual = dy;
    } else {
      four = backward_by_rules(dy, saved, eps, activation, training);
    }
    auto of = [](bool wanted, const Tensor& t) { return wanted ? t : Tensor(); };
    return {of(wanted.x, four.x), of(wanted.weight, four.weight), of(wanted.bias, four.bias),
            of(wanted.residual, four.residual), Tensor()};
  }
};

Tensor normalise(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& residual,
                 Given given) {
  bool record = at::GradMode::is_enabled() && (recorded(x) || recorded(weight) || recorded(bias) ||
                                               recorded(residual));
  if (!record) return compute(x, weight, bias, residual, &given);
  return BatchNorm::apply(x, weight, bias, residual, &given);
}

// Count in an integer tensor of one element.
void count(const Maybe& counter) {
  if (!counter || !counter->defined()) return;
  ++*counter->mutable_data_ptr<int64_t>();
  counter->unsafeGetTensorImpl()->bump_version();
}

bool counts(const Maybe& t) {
  return !t || !t->defined() || (plain(*t) && t->scalar_type() == at::kLong && t->numel() == 1);
}

Maybe train(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& residual,
            const Maybe& running_mean, const Maybe& running_var, const Maybe& num_batches_tracked,
            const Maybe& non_finite_batches, double momentum, double eps, int64_t activation,
            bool guarded) {
  bool tracks = running_mean && running_mean->defined();
  if (!serves(x) || !fits(weight, x) || !fits(bias, x) || !fits_residual(residual, x) ||
      !fits(running_mean, x) || !fits(running_var, x) || recorded(running_mean) ||
      recorded(running_var) || tracks != (running_var && running_var->defined()) ||
      !counts(num_batches_tracked) || !counts(non_finite_batches) || x.numel() == x.size(1) ||
      eps <= 0) {
    return std::nullopt;
  }
  Running running = {};
  bool finite = true;
  if (tracks) {
    double n = double(x.numel() / x.size(1));
    running = {Work::written(*running_mean), Work::written(*running_var), momentum, n / (n - 1), guarded};
  }
  Tensor y = normalise(x, weight, bias, residual,
                       {{}, {}, eps, activation, true, tracks ? &running : nullptr, &finite});
  if (tracks && (finite || !guarded)) {
    running_mean->unsafeGetTensorImpl()->bump_version();
    running_var->unsafeGetTensorImpl()->bump_version();
  }
  if (finite || !guarded) {
    count(num_batches_tracked);
  } else {
    count(non_finite_batches);
  }
  return y;
}

Maybe infer(const Tensor& x, const Tensor& mean, const Tensor& variance, const Maybe& weight,
            const Maybe& bias, const Maybe& residual, double eps, int64_t activation) {
  if (!serves(x) || !fits(mean, x) || !fits(variance, x) || recorded(mean) || recorded(variance) ||
      !fits(weight, x) || !fits(bias, x) || !fits_residual(residual, x) || eps < 0) {
    return std::nullopt;
  }
  return normalise(x, weight, bias, residual, {mean, variance, eps, activation, false, nullptr, nullptr});
}

}  // namespace
}  // namespace bnkit

TORCH_LIBRARY_FRAGMENT(bnkit, m) {
  m.def("idle_bytes() -> int", [] { return bnkit::Pool::instance().idle(); });
  m.def("limit_idle_bytes(int limit) -> ()",
        [](int64_t limit) { bnkit::Pool::instance().limit(limit); });
  m.def("recycled_like(Tensor x) -> Tensor", bnkit::recycled_like);
  m.def("release_idle_bytes() -> ()", [] { bnkit::Pool::instance().release(); });
  m.def(
      "train(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, Tensor(d!)? non_finite_batches, "
      "float momentum, float eps, int activation, bool guarded) -> Tensor?",
      bnkit::train);
  m.def(
      "infer(Tensor x, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, Tensor? residual, "
      "float eps, int activation) -> Tensor?",
      bnkit::infer);
  m.def(
      "core_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
      "int activation) -> (Tensor, Tensor, Tensor)",
      bnkit::forward_operator);
  m.def(
      "core_inference(Tensor x, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, "
      "Tensor? residual, float eps, int activation) -> Tensor",
      bnkit::inference_operator);
  m.def(
      "core_backward(Tensor dy, Tensor x, Tensor mean, Tensor variance, Tensor? weight, "
      "Tensor? bias, Tensor? residual, float eps, int activation, bool training) -> "
      "(Tensor, Tensor?, Tensor?, Tensor?)",
      bnkit::backward_operator);
}
