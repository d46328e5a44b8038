// Who may use a kernel, with checks that pass, fail and throw.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "csrc/trust/kernel_trust.h"
#include "tests/cpp/warnings.h"

namespace frameattn {
namespace {

const KernelUse kUse{"frame_attention_forward", 1, 90, "bfloat16", "16 frames", 0};

class KernelTrustTest : public testing::Test {
 protected:
  void SetUp() override { unsetenv("FRAMEATTN_KERNELS"); }
  void TearDown() override { unsetenv("FRAMEATTN_KERNELS"); }

  // A check that counts its calls.
  std::function<std::string()> says(const std::string& complaint) {
    return [this, complaint] {
      ++checks;
      return complaint;
    };
  }

  std::atomic<int> checks{0};
  Warnings warnings;
};

TEST_F(KernelTrustTest, ATrustedKernelIsNotChecked) {
  KernelTrust trust({{"frame_attention_forward", 1, 90, "bfloat16"}});
  EXPECT_TRUE(trust.allows(kUse, false, says("wrong")));
  EXPECT_TRUE(trust.allows(kUse, true, says("wrong")));
  EXPECT_EQ(checks, 0);
  for (const KernelUse& other : {KernelUse{"frame_update_forward", 1, 90, "bfloat16", "", 0},
                                 KernelUse{"frame_attention_forward", 2, 90, "bfloat16", "another version", 0},
                                 KernelUse{"frame_attention_forward", 1, 80, "bfloat16", "another GPU", 0},
                                 KernelUse{"frame_attention_forward", 1, 90, "float16", "", 0}})
    EXPECT_FALSE(trust.allows(other, false, says("wrong")));
  EXPECT_EQ(checks, 4);
}

TEST_F(KernelTrustTest, AKernelThatAgreesIsCheckedOnceForAShapeAndDevice) {
  KernelTrust trust({});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(trust.allows(kUse, false, says("")));
  EXPECT_EQ(checks, 1);
  KernelUse other = kUse;
  other.shape = "17 frames";
  EXPECT_TRUE(trust.allows(other, false, says("")));
  other.device = 1;
  EXPECT_TRUE(trust.allows(other, false, says("")));
  EXPECT_EQ(checks, 3);
  EXPECT_TRUE(warnings.texts.empty());
}

TEST_F(KernelTrustTest, AWrongKernelIsNeverUsedAndOneWarningSaysSo) {
  KernelTrust trust({});
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(trust.allows(kUse, false, says("an output errs by 3")));
  EXPECT_EQ(checks, 1);
  ASSERT_EQ(warnings.texts.size(), 1u);
  for (const char* part : {"frame_attention_forward (bfloat16, 16 frames)", "an output errs by 3", "frameattn info"})
    EXPECT_NE(warnings.texts[0].find(part), std::string::npos) << warnings.texts[0];
}

TEST_F(KernelTrustTest, ACheckThatThrowsIsAWrongKernel) {
  KernelTrust trust({});
  const auto check = [&]() -> std::string { TORCH_CHECK(false, "no image for this device"); };
  EXPECT_FALSE(trust.allows(kUse, false, check));
  EXPECT_FALSE(trust.allows(kUse, false, says("")));
  ASSERT_EQ(warnings.texts.size(), 1u);
  EXPECT_NE(warnings.texts[0].find("no image for this device"), std::string::npos);
}

TEST_F(KernelTrustTest, WhileAGraphIsCapturedNothingIsChecked) {
  KernelTrust trust({});
  EXPECT_FALSE(trust.allows(kUse, true, says("")));
  EXPECT_FALSE(trust.allows(kUse, true, says("")));
  EXPECT_EQ(checks, 0);
  ASSERT_EQ(warnings.texts.size(), 1u);
  EXPECT_NE(warnings.texts[0].find("before the capture"), std::string::npos);
  EXPECT_TRUE(trust.allows(kUse, false, says("")));  // a capture is no verdict
  EXPECT_TRUE(trust.allows(kUse, true, says("")));
  EXPECT_EQ(checks, 1);
}

TEST_F(KernelTrustTest, TheEnvironmentOverrides) {
  KernelTrust trust({{"frame_attention_forward", 1, 90, "bfloat16"}});
  setenv("FRAMEATTN_KERNELS", "composed", 1);
  EXPECT_FALSE(trust.allows(kUse, false, says("")));
  setenv("FRAMEATTN_KERNELS", "unchecked", 1);
  EXPECT_TRUE(KernelTrust({}).allows(kUse, false, says("wrong")));
  EXPECT_EQ(checks, 0);
  EXPECT_TRUE(warnings.texts.empty());
  setenv("FRAMEATTN_KERNELS", "checked", 1);
  EXPECT_TRUE(trust.allows(kUse, false, says("wrong")));
  EXPECT_FALSE(KernelTrust({}).allows(kUse, false, says("wrong")));
  EXPECT_EQ(checks, 1);
  for (const std::string wrong : {"fast", "portable,fast", "unchecked,portable"}) {
    setenv("FRAMEATTN_KERNELS", wrong.c_str(), 1);
    try {
      trust.allows(kUse, false, says(""));
      FAIL() << wrong << " is no choice";
    } catch (const c10::Error& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("must be checked (as if it were not set), composed, unchecked, portable or, for instance, "
                             "portable,unchecked, got \"" +
                             wrong + "\""),
                std::string::npos)
          << message;
    }
  }
}

TEST_F(KernelTrustTest, PortableKernelsAreCheckedUnlessTheEnvironmentSaysOtherwise) {
  const auto choose = [](const char* value) {
    setenv("FRAMEATTN_KERNELS", value, 1);
    return std::pair(kernel_choice(), only_portable_kernels());
  };
  EXPECT_EQ(choose(""), std::pair(std::string("checked"), false));
  EXPECT_EQ(choose("unchecked"), std::pair(std::string("unchecked"), false));
  EXPECT_EQ(choose("portable"), std::pair(std::string("checked"), true));
  EXPECT_EQ(choose("portable,checked"), std::pair(std::string("checked"), true));
  EXPECT_EQ(choose("portable,composed"), std::pair(std::string("composed"), true));
  EXPECT_EQ(choose("portable,unchecked"), std::pair(std::string("unchecked"), true));
}

TEST_F(KernelTrustTest, WithinACheckEveryKernelIsAllowed) {
  KernelTrust trust({});
  EXPECT_TRUE(trust.allows(kUse, false, [&] {
    EXPECT_TRUE(trust.allows(kUse, false, says("wrong")));
    return std::string();
  }));
  EXPECT_EQ(checks, 0);
}

TEST_F(KernelTrustTest, ThreadsCheckOnce) {
  KernelTrust trust({});
  std::vector<std::thread> threads;
  std::atomic<int> allowed{0};
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { allowed += trust.allows(kUse, false, says("")); });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(allowed, 8);
  EXPECT_EQ(checks, 1);
}

}  // namespace
}  // namespace frameattn
