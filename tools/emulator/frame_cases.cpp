#include "tools/emulator/frame_cases.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "tools/emulator/device.h"
#include "tools/emulator/frame_solution.h"

namespace frameattn {
namespace {

using namespace frames;

// ---- Inputs ---------------------------------------------------------------------------------------------------------

void draw_inputs(Problem& p, const FrameCase& c) {
  Normal generator(20);
  const auto normal = [&](auto...) { return generator(); };
  const bool flat = c.data == FrameData::flat, growing = c.data == FrameData::growing;
  // Logits grow by so much with the keys and with the entropies; over many frames also those within a block of them.
  const double by_key = c.by_blocks() ? 50 : 150, by_entropy = growing && c.by_blocks() ? 350 : 0;
  const double noise = c.by_blocks() ? 1 : 0.01;
  p.scale = c.kernel == FrameKernel::attention_forward || c.kernel == FrameKernel::attention_backward
                ? 1.3 / std::sqrt(static_cast<double>(p.query.columns))
                : 1;
  const double size = p.scale == 1 ? 1 / std::sqrt(static_cast<double>(p.query.columns)) : 1;
  if (c.data == FrameData::masked) p.mass_floor = std::numeric_limits<float>::min();  // the least: masses may be 0
  p.query.fill([&](auto...) { return growing ? 1 : normal(); });
  p.key.fill([&](auto, int64_t frame, auto) {
    if (flat) return 0.0;
    const double grown = growing ? by_key * (frame + 1) / c.frames / (p.scale * p.query.columns) : 0;
    return growing ? grown + noise * normal() * size : size * normal();
  });
  p.value.fill([&](auto...) { return flat ? 1 + 0.1 * normal() : normal(); });
  p.grad_out.fill(normal);
  p.grad_lse.fill(normal);
  p.entropy.fill([&](int64_t item, int64_t frame, auto) {
    const bool outside = item == 2 ? frame >= 128 : item == 3 && frame < 128;
    if (c.data == FrameData::masked && (item == 1 || outside || frame % 3 == 1)) return kInfinity;
    return flat ? 0 : 0.5 * normal() - by_entropy * (frame + 1) / c.frames;
  });
}

// What forward gives backward: mass in the update form; where other keys share the softmax, its log-sums.
void draw_statistics(Problem& p, const FrameCase& c) {
  std::vector<double> mass(p.mass.values.size());
  for (int64_t item = 0; item < Items(c).count(); ++item) {
    const Matrix weights = weights_of(p, item, c.frames);
    for (int64_t l = 0; l < c.frames; ++l)
      for (int64_t k = 0; k < c.frames; ++k) mass[item * c.frames + k] += weights[l][k];
  }
  p.mass.fill([&](int64_t item, int64_t frame, auto) { return mass[item * c.frames + frame]; });
  p.row_lse.fill([&](int64_t item, int64_t frame, auto) {
    const double lse = p.lse.at(item, frame);
    if (frame % 4 == 1) return kInfinity;  // a row that takes no part
    // Where none of these keys has weight, the others may be very small, or have none either.
    return lse > -kInfinity ? lse + 0.5 * (frame % 4) : frame % 4 == 2 ? -200 : -kInfinity;
  });
  p.row_offset.fill([](int64_t item, int64_t frame, auto) { return 0.25 * ((item + frame) % 7) - 0.5; });
}

FrameAttentionParams params_of(Problem& p, const FrameCase& c) {
  FrameAttentionParams params;
  std::copy_n(Items(c).size, 3, params.items);
  params.scale = static_cast<float>(p.scale);
  params.mass_floor = static_cast<float>(p.mass_floor);
  params.query = p.query.rows;
  params.key = p.key.rows;
  params.value = p.value.rows;
  params.out = p.out.rows;
  params.grad_out = p.grad_out.rows;
  params.grad_query = p.grad_query.rows;
  params.grad_key = p.grad_key.rows;
  params.grad_value = p.grad_value.rows;
  params.entropy = p.entropy.as_scalars();
  params.lse = p.lse.as_scalars();
  params.mass = p.mass.as_scalars();
  params.grad_lse = p.grad_lse.as_scalars();
  params.grad_entropy = p.grad_entropy.as_scalars();
  if (c.shared || c.by_blocks()) {
    params.row_lse = p.row_lse.as_scalars();
    params.row_offset = p.row_offset.as_scalars();
  }
  params.accumulate = c.by_blocks();
  return params;
}

// ---- Launches -------------------------------------------------------------------------------------------------------

void launch(const FrameCase& c, FrameKernel kernel, const FrameAttentionParams& params) {
  const int64_t frames = params.accumulate ? most_frames(kernel) : std::max(params.query.frames, params.key.frames);
  const int64_t columns = c.resident ? params.key.columns : 1 << 20;
  const FramePlan plan =
      plan_frame_kernel(kernel, frames, columns, params.value.columns, device::shared_memory_limit());
  if (!plan.possible) throw std::runtime_error("no plan");
  device::finish(launch_frame_kernel({kernel, c.architecture}, params, plan, c.element, nullptr));
}

// All keys for all queries, by blocks of frames: as csrc/frame_attention/cuda/frame_blocks.cpp does with tensors.
void launch_blocks(const FrameCase& c, FrameKernel kernel, const FrameAttentionParams& whole) {
  const int64_t most = most_frames(kernel);
  const auto narrow = [&](int64_t first, std::initializer_list<FrameRows*> inputs,
                          std::initializer_list<FrameRows*> results, std::initializer_list<FrameScalars*> scalars) {
    const auto cut = [&](FrameRows& rows, int64_t bytes) {
      rows.frames = static_cast<int32_t>(std::min(most, c.frames - first));
      rows.data = static_cast<uint8_t*>(rows.data) + first * rows.frame_stride * bytes;
    };
    for (FrameRows* rows : inputs) cut(*rows, 2);
    for (FrameRows* rows : results) cut(*rows, 4);
    for (FrameScalars* one : scalars) one->data += first * one->frame_stride;
  };
  for (int64_t l = 0; l < c.frames; l += most)
    for (int64_t k = 0; k < c.frames; k += most) {
      FrameAttentionParams p = whole;
      narrow(l, {&p.query, &p.grad_out}, {&p.out, &p.grad_query}, {&p.lse, &p.row_lse, &p.row_offset});
      narrow(k, {&p.key, &p.value}, {&p.grad_key, &p.grad_value}, {&p.entropy, &p.grad_entropy});
      launch(c, kernel, p);
    }
}

void run_by_blocks(Problem& p, const FrameCase& c) {
  p.out.begin_with(0);
  p.lse.begin_with(-std::numeric_limits<float>::infinity());
  launch_blocks(c, FrameKernel::attention_forward, params_of(p, c));
  if (c.kernel == FrameKernel::attention_forward) return;
  const std::vector<float> out = p.out.read(), lse = p.lse.read();
  p.row_lse.fill([&](int64_t item, int64_t frame, auto) { return lse[item * c.frames + frame]; });
  p.row_offset.fill([&](int64_t item, int64_t frame, auto) {
    double offset = -p.grad_lse.at(item, frame);
    for (int64_t column = 0; column < p.out.columns; ++column)
      offset += p.grad_out.at(item, frame, column) * out[(item * c.frames + frame) * p.out.columns + column];
    return offset;
  });
  for (Tensor* gradient : {&p.grad_query, &p.grad_key, &p.grad_value, &p.grad_entropy}) gradient->begin_with(0);
  launch_blocks(c, FrameKernel::attention_backward, params_of(p, c));
}

// ---- Comparison -----------------------------------------------------------------------------------------------------

bool compare(const FrameCase& c, const char* name, Tensor& tensor, FrameOutcome& outcome) {
  const bool statistic = std::strcmp(name, "lse") == 0 || std::strcmp(name, "mass") == 0;
  return compare(name, tensor.read(), tensor.values, tensor.magnitudes,
                 statistic ? kStatisticTolerance : result_tolerance(c.element), outcome);
}

}  // namespace

std::string FrameCase::name() const {
  const char* kernels[] = {"attention_forward", "attention_backward", "update_forward", "update_backward"};
  const char* kinds[] = {"random", "flat", "growing", "masked"};
  char text[160];
  std::snprintf(text, sizeof text, "frame_%s_%s-%s-%s-T%lld-%dx%dx%d-%s%s%s", kernels[static_cast<int>(kernel)],
                architecture_name(architecture), element == FrameElement::bfloat16 ? "bfloat16" : "float16",
                matrix ? "matrix" : "temporal", static_cast<long long>(frames), segment, segments, value_segments,
                kinds[static_cast<int>(data)], resident ? "" : "-streamed", shared ? "-shared" : "");
  return text;
}

std::vector<FrameCase> frame_cases() {
  struct Width {
    bool matrix;
    int segment, segments, value_segments;
  };
  // One piece, a part of a slab, one and two whole ones, rows of 72 channels as in FrameDiT-XL, many of 8, and none.
  const Width widths[] = {{false, 8, 1, 1}, {false, 64, 1, 1}, {false, 128, 1, 1}, {false, 200, 1, 1},
                          {true, 72, 2, 8}, {true, 64, 2, 3},  {true, 8, 7, 13}};
  std::vector<FrameCase> cases;
  for (int kernel = 0; kernel < 4; ++kernel) {
    int turn = kernel;
    for (int64_t frames : {1, 2, 7, 15, 16, 17, 21, 31, 32, 33, 44, 47, 48, 49, 63, 64, 65, 100, 127, 128}) {
      const bool update = kernel >= 2;
      if (frames > 64 && kernel == 3) continue;
      const int repeats = frames > 64 ? 2 : 4;
      for (int i = 0; i < repeats; ++i, ++turn) {  // the settings take turns: each meets each other somewhere
        const Width width = widths[(turn + i) % 7];
        cases.push_back({static_cast<FrameKernel>(kernel), static_cast<FrameElement>(turn % 3 == 2), width.matrix,
                         frames, width.segment, width.segments, update ? width.segments : width.value_segments,
                         static_cast<FrameData>((i + turn / 4) % 4), turn % 5 != 0});
      }
    }
  }
  int turn = 0;
  for (int64_t frames : {7, 16, 17, 44, 64, 100})  // row_lse and row_offset
    for (int i = 0; i < 4; ++i, ++turn) {
      const Width width = widths[turn % 7];
      cases.push_back({FrameKernel::attention_backward, static_cast<FrameElement>(turn % 3 == 2), width.matrix, frames,
                       width.segment, width.segments, width.value_segments, static_cast<FrameData>((i + turn / 4) % 4),
                       turn % 5 != 0, true});
    }
  for (const FrameKernel kernel : {FrameKernel::attention_forward, FrameKernel::attention_backward})
    for (int64_t frames : {129, 130, 200, 257, 300})
      for (int i = 0; i < (frames > 130 ? 2 : 4); ++i, ++turn) {
        const Width width = widths[(turn + i) % 7];
        cases.push_back({kernel, static_cast<FrameElement>(turn % 3 == 2), width.matrix, frames, width.segment,
                         width.segments, width.value_segments, static_cast<FrameData>(turn % 4), turn % 5 != 0});
      }
  return cases;
}

FrameOutcome run_frame_case(const FrameCase& c) {
  Problem p(c, c.by_blocks() ? Kind::sums : Kind::rows);
  draw_inputs(p, c);
  if (c.kernel == FrameKernel::update_backward || c.shared) draw_statistics(p, c);
  for (int64_t item = 0; item < Items(c).count(); ++item) solve(p, c, item);
  if (c.by_blocks())
    run_by_blocks(p, c);
  else
    launch(c, c.kernel, params_of(p, c));
  FrameOutcome outcome{true, "", {}};
  const auto check = [&](const char* name, Tensor& tensor) {
    outcome.right = compare(c, name, tensor, outcome) && outcome.right;
  };
  switch (c.kernel) {
    case FrameKernel::attention_forward:
      check("out", p.out);
      check("lse", p.lse);
      break;
    case FrameKernel::attention_backward:
      check("grad_query", p.grad_query);
      check("grad_key", p.grad_key);
      check("grad_value", p.grad_value);
      check("grad_entropy", p.grad_entropy);
      break;
    case FrameKernel::update_forward:
      check("out", p.out);
      check("mass", p.mass);
      break;
    case FrameKernel::update_backward:
      check("grad_query", p.grad_query);
      check("grad_key", p.grad_key);
      check("grad_entropy", p.grad_entropy);
      break;
  }
  return outcome;
}

}  // namespace frameattn
