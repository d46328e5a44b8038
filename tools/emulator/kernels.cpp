// Runs the kernels, on the emulator or on a GPU, and compares them with float64.
//   kernels                        every case
//   kernels --part 2/3             the second of every three
//   kernels --list                 their names
//   kernels --case TEXT            the cases whose names contain TEXT (more than once: all of the texts)
//   kernels --dump FILE            also writes their results as float32, one after the other
//   kernels --quiet                prints failures only; --stop: ends at the first
//   kernels --thorough             under every schedule and order of copies (emulator)
//   kernels --option schedule=2 --option seed=5 --option early --option no-races     under this one (emulator)
// Exit status 0: all agree. A case that fails says how; the others go on.
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "tools/emulator/device.h"
#include "tools/emulator/flash_cases.h"
#include "tools/emulator/frame_cases.h"
#include "tools/emulator/modulation_cases.h"

struct Case {
  std::string name;
  std::function<frameattn::FrameOutcome()> run;
};

static std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const auto& c : frameattn::frame_cases()) cases.push_back({c.name(), [c] { return run_frame_case(c); }});
  for (const auto& c : frameattn::flash_cases()) cases.push_back({c.name(), [c] { return run_flash_case(c); }});
  for (const auto& c : frameattn::modulation_cases())
    cases.push_back({c.name(), [c] { return run_modulation_case(c); }});
  return cases;
}

int main(int count, char** arguments) {
  std::vector<std::string> wanted, options;
  std::string dump;
  int part = 1, parts = 1;
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
    } else if (argument == "--part" && has_value && std::sscanf(arguments[i + 1], "%d/%d", &part, &parts) == 2 &&
               part >= 1 && part <= parts) {
      ++i;
    } else if (argument == "--dump" && has_value) {
      dump = arguments[++i];
    } else if (argument == "--option" && has_value) {
      options.push_back(arguments[++i]);
    } else {
      std::fprintf(stderr, "kernels: what is %s? See the head of kernels.cpp\n", argument.c_str());
      return 2;
    }
  }
  for (const std::string& option : options)
    if (!device::set_option(option)) {
      std::fprintf(stderr, "kernels: the %s has no option %s\n", device::name, option.c_str());
      return 2;
    }

  std::ofstream file;
  if (!dump.empty()) file.open(dump, std::ios::binary);
  int run = 0, failed = 0, number = 0;
  for (const auto& [name, run_case] : all_cases()) {
    bool chosen = number++ % parts == part - 1;
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
        const frameattn::FrameOutcome outcome = run_case();
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
