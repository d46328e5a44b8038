#!/bin/bash
# The docstring of LatteTransformer3DModel.forward says of encoder_attention_mask: a mask with two dimensions, 1 to keep
# and 0 to drop a token of the text, is converted into a bias of 0 and -10000. It is added to the logits as it is: a
# dropped token loses 1 to those that are kept, so that padding of a text moves the output. LattePipeline passes no mask
# but cuts or zeroes the padding; whoever trains with padded texts meets this. (With more than one frame the mask has to
# be repeated for every frame by the caller; here there is one.)
#
#   package    diffusers 0.42.1 with torch 2.13.0, from PyPI, on CPU
#   input      a small random model, one frame, a text of 5 tokens of which 2 are dropped
#   seen       the output with the mask is that with the bias [1, 1, 1, 0, 0], to rounding, and differs from that with
#              the bias of the docstring, which is that of the first three tokens alone
#   expected   the mask gives what the bias [0, 0, 0, -10000, -10000] gives
#
# Exit status 0: the behaviour is as described. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 diffusers==0.42.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from diffusers import LatteTransformer3DModel

torch.manual_seed(0)
model = LatteTransformer3DModel(
    num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=24,
    attention_bias=True, sample_size=8, patch_size=2, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
    norm_type="ada_norm_single", norm_elementwise_affine=False, caption_channels=6, video_length=1,
).double().eval()
latents, text, step = torch.randn(1, 4, 1, 8, 8).double(), torch.randn(1, 5, 6).double(), torch.tensor([500])
mask = torch.tensor([[1.0, 1, 1, 0, 0]]).double()

with torch.no_grad():
    def output(text, mask=None):
        return model(latents, step, text, encoder_attention_mask=mask).sample

    masked = output(text, mask)
    bias = (1 - mask.unsqueeze(1)) * -10_000
    raw, documented, cut = output(text, mask.unsqueeze(1)), output(text, bias), output(text[:, :3])

def difference(x, y):
    return ((x - y).abs().max() / masked.abs().max()).item()

as_raw, as_documented = difference(masked, raw), difference(masked, documented)
bias_is_cut = difference(documented, cut)
print(f"mask against itself as a bias: {as_raw:.1e}; against the bias of the docstring: {as_documented:.1e}; "
      f"that bias against a text without these tokens: {bias_is_cut:.1e}")
raise SystemExit(not (as_raw < 1e-12 and as_documented > 1e-3 and bias_is_cut < 1e-12))
PYTHON
