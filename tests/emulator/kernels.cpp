// Runs the frame kernels, on the emulator or on a GPU, and compares them with float64.
//   frame_kernels                        every case
//   frame_kernels --list                 their names
//   frame_kernels --case TEXT            the cases whose names contain TEXT (more than once: all of the texts)
//   frame_kernels --dump FILE            also writes their results as float32, one after the other
//   frame_kernels --quiet                prints failures only; --stop: ends at the first
//   frame_kernels --thorough             under every schedule and order of copies (emulator)
//   frame_kernels --option schedule=2 --option seed=5 --option early --option no-races     under this one (emulator)
// Exit status 0: all agree. A case that fails says how; the others go on.
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include "tests/emulator/device.h"
#include "tests/emulator/frame_cases.h"

int main(int count, char** arguments) {
  std::vector<std::string> wanted, options;
  std::string dump;
  bool list = false, thorough = false, quiet = false, stop = false;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    const bool has_value = i + 1 < count;
    if (argument == "--list") {
      list = true;
    } else if (argument == "--thorough") {
      thorough = true;
    } else if (argument == "--quiet") {
      quiet = true;
    } else if (argument == "--stop") {
      stop = true;
    } else if (argument == "--case" && has_value) {
      wanted.push_back(arguments[++i]);
    } else if (argument == "--dump" && has_value) {
      dump = arguments[++i];
    } else if (argument == "--option" && has_value) {
      options.push_back(arguments[++i]);
    } else {
      std::fprintf(stderr, "frame_kernels: what is %s? See the head of frame_kernels.cpp\n", argument.c_str());
      return 2;
    }
  }
  for (const std::string& option : options)
    if (!device::set_option(option)) {
      std::fprintf(stderr, "frame_kernels: the %s has no option %s\n", device::name, option.c_str());
      return 2;
    }

  std::ofstream file;
  if (!dump.empty()) file.open(dump, std::ios::binary);
  int run = 0, failed = 0;
  for (const frameattn::FrameCase& problem : frameattn::frame_cases()) {
    const std::string name = problem.name();
    bool chosen = true;
    for (const std::string& text : wanted) chosen = chosen && name.find(text) != std::string::npos;
    if (!chosen) continue;
    if (list) {
      std::puts(name.c_str());
      continue;
    }
    for (const auto& setting : thorough ? device::thorough_options() : std::vector<std::vector<std::string>>{{}}) {
      std::string label = name;
      for (const std::string& option : setting) {
        device::set_option(option);
        if (option != "default") label += " " + option;
      }
      ++run;
      try {
        const frameattn::FrameOutcome outcome = frameattn::run_frame_case(problem);
        failed += !outcome.right;
        if (!quiet || !outcome.right)
          std::printf("%s %s:%s\n", outcome.right ? "ok    " : "FAILED", label.c_str(), outcome.text.c_str());
        if (file.is_open())
          file.write(reinterpret_cast<const char*>(outcome.results.data()), 4 * outcome.results.size());
      } catch (const std::exception& error) {
        ++failed;
        std::printf("FAILED %s: %s\n", label.c_str(), error.what());
      }
      std::fflush(stdout);
      if (stop && failed) return 1;
    }
  }
  if (list) return 0;
  std::printf("%d of %d runs on the %s failed\n", failed, run, device::name);
  return run == 0 ? 2 : failed > 0;
}
