// How plain loops become AVX2 and AVX-512 code in a build for any x86-64: GCC on Linux compiles a function marked
// FRAMEATTN_MULTIVERSION once for each instruction set and picks one at load time; others build it once.
// What such a function calls must be inlined into it (FRAMEATTN_INLINE), or it stays code for the oldest CPU.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define FRAMEATTN_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FRAMEATTN_MULTIVERSION
#endif
#define FRAMEATTN_INLINE inline __attribute__((always_inline))
