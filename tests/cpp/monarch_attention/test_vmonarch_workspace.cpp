// Backward of the fused operator as on CUDA: what it holds at a time, which of torch's operators it calls, and that
// chunks of heads change neither result. Tensors are on the CPU, kernels in the emulator.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "csrc/monarch_attention/cpu/implementation.h"
#include "csrc/monarch_attention/cuda/gpu_implementation.h"
#include "csrc/monarch_attention/head_chunks.h"
#include "tests/cpp/emulated_gpu.h"
#include "tests/cpp/warnings.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

class Memory : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    now += bytes;
    most = std::max(most, now);
  }
  bool memoryProfilingEnabled() const override { return true; }

  int64_t now = 0, most = 0;
};

// Calls of torch's operators that read or write as many elements as a tensor like query has: passes over memory.
struct Passes : at::ObserverContext {
  static inline int64_t least = 0;
  static inline std::map<std::string, int> calls;

  static std::unique_ptr<at::ObserverContext> see(const at::RecordFunction& call) {
    for (const c10::IValue& input : call.inputs())
      if (input.isTensor() && input.toTensor().defined() && input.toTensor().numel() >= least) {
        const std::string name = call.name();
        ++calls[name.substr(name.find("::") + 2)];
        break;
      }
    return nullptr;
  }
};

class VMonarchWorkspace : public testing::Test {
 protected:
  VMonarchWorkspace() {
    emulator.trust_everything();
    at::manual_seed(0);
  }

  void draw(at::ScalarType dtype = at::kBFloat16, int64_t extra_keys = 0) {
    const auto rows = [&](int64_t count, int64_t width) { return at::randn({batch, heads, count, width}).to(dtype); };
    const int64_t tokens = frames * positions;
    inputs = {rows(tokens, dim), rows(tokens, dim), rows(tokens, value_dim)};
    if (extra_keys) {
      inputs.extra_key = rows(extra_keys, dim);
      inputs.extra_value = rows(extra_keys, value_dim);
      inputs.extra_mask = at::arange(batch * extra_keys).view({batch, extra_keys}).remainder(3) != 1;
    }
    grad_out = rows(tokens, value_dim);
    grad_lse = at::randn({batch, heads, tokens}).to(acc_dtype(grad_out));
    options.scale = 0.3;
  }
  Tensors backward(const Implementation& device, std::optional<int64_t> workspace_bytes) {
    options.workspace_bytes = workspace_bytes;
    if (!saved.size()) std::tie(out, lse, saved) = vmonarch_attention_forward_on(device, inputs, frames, options, true);
    const auto [a, b, c, d, e] =
        vmonarch_attention_backward_on(device, {grad_out, grad_lse, out, lse, saved}, inputs, frames, options);
    return {a, b, c, d, e};
  }
  Tensors wide_saved() const {
    Tensors wide;
    for (const Tensor& t : saved) wide.push_back(t.to(at::kDouble));
    return wide;
  }
  // What a call of backward holds beside its results at most, as multiples of query; statistics are beside this.
  double held(std::optional<int64_t> workspace_bytes) {
    const Implementation& device = gpu_implementation<&emulated_context>();
    backward(device, workspace_bytes);
    const auto memory = std::make_shared<Memory>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
    const Tensors results = backward(device, workspace_bytes);
    int64_t bytes = memory->most;
    for (const Tensor& t : results) bytes -= t.nbytes();
    return static_cast<double>(bytes) / inputs.query.nbytes();
  }

  int64_t batch = 1, heads = 6, frames = 4, positions = 32, dim = 64, value_dim = 64;
  VMonarchInputs inputs;
  VMonarchOptions options;
  Tensor grad_out, grad_lse, out, lse;
  Tensors saved;
  EmulatedGpu emulator;
};

TEST_F(VMonarchWorkspace, IsSixTimesQueryOrFourOnHopperOrWhatTheLimitSays) {
  emulator.gpu().multiprocessors = 132;  // the first frame's gradient of the query is a sum of as many parts as frames
  const double statistics = 0.35;        // a float32 a row is 4 / 128 of query: offset, lse, gradients of entropy
  for (const auto& [capability, queries] : {std::pair{80, 6}, std::pair{90, 4}}) {
    emulator.gpu().capability = capability;
    draw();
    const double whole = held(std::nullopt);
    EXPECT_GE(whole, queries);
    EXPECT_LE(whole, queries + statistics);
    const int64_t query = inputs.query.nbytes();
    for (const int64_t chunks : {2, 3, 6}) {
      const double part = held(queries * query / chunks);
      EXPECT_GE(part, 1.0 * queries / chunks) << chunks;
      EXPECT_LE(part, (queries + statistics) / chunks) << chunks;
    }
    EXPECT_LE(held(0), (queries + statistics) / 6);  // a head at a time
  }
}

TEST_F(VMonarchWorkspace, OnHopperTheLastStepTakesDenseRowsAlong) {
  const Implementation& device = gpu_implementation<&emulated_context>();
  const auto launches = [this](const char* kernel) { return std::ranges::count(emulator.flash_kernels, kernel); };
  for (const int64_t iterations : {1, 2}) {
    options = {.iterations = iterations};
    draw();
    saved.clear();
    backward(device, std::nullopt);
    EXPECT_EQ(launches("flash_backward_query_sm90"), iterations + 1);
    EXPECT_EQ(launches("flash_backward_key_sm90"), iterations);
    const auto wide = [](const Tensor& t) { return t.to(at::kDouble); };
    const auto [a, b, c, d, e] = vmonarch_attention_backward_on(
        cpu_implementation(), {wide(grad_out), wide(grad_lse), wide(out), wide(lse), wide_saved()},
        {wide(inputs.query), wide(inputs.key), wide(inputs.value)}, frames, options);
    const Tensors found = backward(device, std::nullopt), right = {a, b, c};
    for (size_t i = 0; i < right.size(); ++i)
      EXPECT_LE((wide(found[i]) - right[i]).norm().item<double>(), 0x1p-7 * right[i].norm().item<double>()) << i;
    emulator.flash_kernels.clear();
  }
}

TEST_F(VMonarchWorkspace, DenseRowsAreCheckedAtTheirFirstUseAndGoAloneWhereTheyErr) {
  const Implementation& device = gpu_implementation<&emulated_context>();
  Warnings warnings;
  draw();
  emulator.gpu().capability = 80;
  const Tensors portable = backward(device, std::nullopt);
  emulator.gpu().capability = 90;
  unsetenv("FRAMEATTN_KERNELS");
  emulator.wrong_kernel = "flash_backward_key_sm90";
  const Tensors found = backward(device, std::nullopt);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(found[i].equal(portable[i])) << i;
  EXPECT_EQ(warnings.count("flash_backward_sm90 (bfloat16, 64 columns, keys, values, dense rows) does not agree"), 1);
}

TEST_F(VMonarchWorkspace, ResultsDoNotDependOnIt) {
  batch = 3;
  positions = 10;
  heads = 3;
  dim = 40;
  for (const auto dtype : {at::kBFloat16, at::kHalf})
    for (const bool first : {true, false})
      for (const int64_t iterations : {1, 2, 3}) {
        saved.clear();
        options = {.iterations = iterations, .dense_first_frame = first};
        draw(dtype, iterations == 2 ? 9 : 0);
        const Implementation& device = gpu_implementation<&emulated_context>();
        emulator.gpu().multiprocessors = 132;  // dense rows are added up from parts: as many for some heads as for all
        const Tensors whole = backward(device, std::nullopt);
        if (first || iterations == 2) EXPECT_EQ(std::ranges::count(emulator.flash_kernels, "flash_sum_sm80") > 0, true);
        const int64_t head = inputs.query.nbytes() / (batch * heads);
        for (const int64_t limit : {int64_t{0}, 13 * head, 50 * head}) {  // one head, two of a clip, two clips
          const Tensors parts = backward(device, limit);
          for (size_t i = 0; i < whole.size(); ++i) EXPECT_TRUE(parts[i].equal(whole[i])) << limit << ", " << i;
        }
      }
}

TEST_F(VMonarchWorkspace, NothingIsFilledAddedOrCast) {
  for (const bool first : {true, false})
    for (const int64_t iterations : {1, 2, 3})
      for (const int64_t extra_keys : {0, 16}) {
        saved.clear();
        options = {.iterations = iterations, .dense_first_frame = first};
        draw(at::kBFloat16, extra_keys);
        const Implementation& device = gpu_implementation<&emulated_context>();
        backward(device, std::nullopt);
        Passes::calls.clear();
        Passes::least = inputs.query.numel() / frames;  // a frame of it
        const auto handle = at::addGlobalCallback(
            at::RecordFunctionCallback(&Passes::see).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
        backward(device, std::nullopt);
        at::removeCallback(handle);
        EXPECT_GE(Passes::calls["narrow"], 1);  // the observer sees something
        for (const char* view : {"narrow", "slice", "unflatten", "view", "permute", "unsqueeze", "select", "as_strided",
                                 "expand", "transpose", "_reshape_alias", "squeeze", "contiguous"})
          Passes::calls.erase(view);
        std::string others;
        for (const auto& [name, calls] : Passes::calls) others += name + " x " + std::to_string(calls) + ", ";
        EXPECT_EQ(others, "") << iterations << " iterations";
      }
}

TEST(HeadChunks, AreWholeClipsOrHeadsOfOneAndNearlyOfOneSize) {
  const auto sizes = [](int64_t batches, int64_t heads, int64_t most) {
    std::vector<std::array<int64_t, 4>> found;
    for (const HeadChunk& c : head_chunks(batches, heads, most)) found.push_back({c.batch, c.batches, c.head, c.heads});
    return found;
  };
  using Chunks = std::vector<std::array<int64_t, 4>>;
  EXPECT_EQ(sizes(1, 12, 12), (Chunks{{0, 1, 0, 12}}));
  EXPECT_EQ(sizes(1, 12, 100), (Chunks{{0, 1, 0, 12}}));
  EXPECT_EQ(sizes(1, 12, 4), (Chunks{{0, 1, 0, 4}, {0, 1, 4, 4}, {0, 1, 8, 4}}));
  EXPECT_EQ(sizes(1, 7, 5), (Chunks{{0, 1, 0, 3}, {0, 1, 3, 4}}));
  EXPECT_EQ(sizes(3, 2, 5), (Chunks{{0, 1, 0, 2}, {1, 2, 0, 2}}));
  EXPECT_EQ(sizes(2, 2, 0), (Chunks{{0, 1, 0, 1}, {0, 1, 1, 1}, {1, 1, 0, 1}, {1, 1, 1, 1}}));
  EXPECT_EQ(sizes(0, 2, 1), Chunks{});
}

}  // namespace
}  // namespace frameattn
