#!/bin/bash
# For sm_120a ptxas makes a function call of a tensor copy into shared::cluster, and then ignores every setmaxnreg of the
# kernel. The same PTX is one instruction for sm_90a and sm_100a, and so is the copy into shared::cta, which means the same
# place in a kernel without clusters. Kernels that pass registers from producers to consumers lose that on sm_120a, for a
# spelling.
#
#   package    nvidia-cuda-nvcc 13.0.88 (ptxas of CUDA 13.0), from PyPI; no GPU is needed
#   input      setmaxnreg.dec, then cp.async.bulk.tensor.2d into shared::cluster or shared::cta, for three targets
#   seen       sm_120a, shared::cluster: a call of __cuda_syscall_cp_async_bulk_tensor_2d_tile_unicast and the line
#              "(C7506) Potential Performance Loss: 'setmaxnreg' ignored ..."; neither for the other four
#   expected   no call, or none of the loss: the kernel has one block in a cluster
#
# Exit status 0: the behaviour is as described. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m pip install --quiet --no-deps --target "$folder" nvidia-cuda-nvcc==13.0.88
ptxas="$folder/nvidia/cu13/bin/ptxas"
chmod +x "$ptxas"
"$ptxas" --version | tail -1

try() {  # target, state space of the destination, whether a call is expected
  cat > "$folder/k.ptx" <<PTX
.version 8.7
.target $1
.address_size 64
.visible .entry k(.param .align 64 .b8 map[128])
.maxntid 256, 1, 1
.minnctapersm 1
{
.shared .align 128 .b8 tile[4096];
.shared .align 8 .b64 barrier;
.reg .b32 %tile, %barrier, %x;
.reg .b64 %generic, %map;
setmaxnreg.dec.sync.aligned.u32 24;
mov.b64 %generic, map;
cvta.param.u64 %map, %generic;
mov.u32 %tile, tile;
mov.u32 %barrier, barrier;
mov.u32 %x, 0;
cp.async.bulk.tensor.2d.$2.global.tile.mbarrier::complete_tx::bytes [%tile], [%map, {%x, %x}], [%barrier];
ret;
}
PTX
  "$ptxas" -arch="$1" -O3 -v "$folder/k.ptx" -o "$folder/k.cubin" 2> "$folder/said" || { cat "$folder/said"; return 1; }
  local call=no ignored=no
  if grep -q __cuda_syscall_cp_async_bulk_tensor "$folder/k.cubin"; then call=yes; fi
  if grep -q "C7506.*setmaxnreg" "$folder/said"; then ignored=yes; fi
  echo "$1 $2: a call: $call; setmaxnreg ignored: $ignored"
  [ "$call $ignored" = "$3 $3" ]
}
try sm_90a shared::cluster no
try sm_100a shared::cluster no
try sm_100a shared::cta no
try sm_120a shared::cta no
try sm_120a shared::cluster yes
