"""Excerpts of programs that the compilers for TPU and GPU wrote (jax 0.10.2 and 0.11)."""

# A scanned block of a transformer's MLP on a v5e:2x4, mesh (data 2, fsdp 2, tensor 2). The loop
# says nothing of its trip count; one gather is spread over three fusions; the gradients'
# reduce-scatter is an all-reduce in a fusion.
TPU_SCAN = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[14,1024,256]{2,1,0:T(8,128)(2,1)})->bf16[16,64,512]{2,1,0}}, num_partitions=8

FileNames
1 "step.py"

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%add.clone (x.3: bf16[], y.2: bf16[]) -> bf16[] {
  %x.3 = bf16[]{:T(256)} parameter(0)
  %y.2 = bf16[]{:T(256)} parameter(1)
  ROOT %add.33 = bf16[]{:T(256)} add(%x.3, %y.2), backend_config={"flag_configs":[]}
}

%fused_computation.63 (param_0.174: bf16[1,1024,256]) -> (bf16[1,1024,256], bf16[1,1024,512], s32[2], u32[]) {
  %param_0.174 = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.27 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.174), channel_id=15, replica_groups=[4,2]<=[4,2]T(1,0), dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/jvp()/while/body/bth,hd->btd/dot_general" stack_frame_id=15}, backend_config={"flag_configs":[],"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %custom-call.10 = (bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) custom-call(%all-gather.27), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.85 (param_0.182: bf16[1,1024,256], param_1.184: bf16[1,1024,512], param_2.138: s32[2], param_3.109: u32[], param_4: bf16[16,64,512], /*index=5*/param_5: bf16[1,512,1024]) -> (bf16[16,64,1024], bf16[1,1024,256], bf16[1,1024,512], s32[2], u32[]) {
  %param_4 = bf16[16,64,512]{2,1,0:T(8,128)(2,1)} parameter(4)
  %param_5 = bf16[1,512,1024]{2,1,0:T(8,128)(2,1)S(1)} parameter(5)
  %bitcast.9 = bf16[512,1024,1]{1,0,2:T(8,128)(2,1)} bitcast(%param_5)
  %convolution.7 = bf16[16,64,1024]{2,1,0:T(8,128)(2,1)S(1)} convolution(%param_4, %bitcast.9), window={size=1}, dim_labels=0bf_io0->0bf, metadata={op_name="jit(step)/jvp()/while/body/btd,dh->bth/dot_general" stack_frame_id=17}
  %param_0.182 = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.184 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.29 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.182), channel_id=15, replica_groups=[4,2]<=[4,2]T(1,0), dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, backend_config={"flag_configs":[],"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  %param_2.138 = s32[2]{0:S(4)} parameter(2)
  %param_3.109 = u32[]{:S(2)} parameter(3)
  ROOT %tuple.72 = (bf16[16,64,1024]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) tuple(%convolution.7, %param_0.182, %all-gather.29, %param_2.138, %param_3.109)
}

%fused_computation.65 (param_0.186: bf16[1,1024,256], param_1.186: bf16[1,1024,512], param_2.140: s32[2], param_3.111: u32[]) -> bf16[1,1024,512] {
  %param_0.186 = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.186 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.31 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.186), channel_id=15, replica_groups=[4,2]<=[4,2]T(1,0), dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, backend_config={"flag_configs":[],"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  %param_2.140 = s32[2]{0:S(4)} parameter(2)
  %param_3.111 = u32[]{:S(2)} parameter(3)
  ROOT %custom-call.12 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%param_0.186, %param_1.186, %all-gather.31, %param_2.140, %param_3.111), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.2.clone.1 (input_0.2: bf16[512,1024], input_1.2: bf16[1024,512]) -> (bf16[256,1024], bf16[1024,256]) {
  %input_0.2 = bf16[512,1024]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %input_1.2 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-reduce.16 = (bf16[512,1024]{1,0:T(8,128)(2,1)}, bf16[1024,512]{1,0:T(8,128)(2,1)}) all-reduce(%input_0.2, %input_1.2), channel_id=1, replica_groups={{0,2},{4,6},{1,3},{5,7}}, use_global_device_ids=true, to_apply=%add.clone, backend_config={"flag_configs":[]}
  %get-tuple-element.577 = bf16[512,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%all-reduce.16), index=0
  %constant.shard_id_table.4 = u32[8]{0:T(128)} constant({0, 0, 1, 1, 0, 0, 1, 1})
  %partition-id.11 = u32[] partition-id()
  %dynamic-slice.83 = u32[1]{0:T(128)} dynamic-slice(%constant.shard_id_table.4, %partition-id.11), dynamic_slice_sizes={1}
  %bitcast.129 = u32[]{:T(128)} bitcast(%dynamic-slice.83)
  %constant.323 = u32[] constant(256)
  %multiply.15 = u32[]{:T(128)} multiply(%bitcast.129, %constant.323)
  %constant.324 = u32[] constant(0)
  %dynamic-slice.84 = bf16[256,1024]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%get-tuple-element.577, %multiply.15, %constant.324), dynamic_slice_sizes={256,1024}
  %get-tuple-element.578 = bf16[1024,512]{1,0:T(8,128)(2,1)} get-tuple-element(%all-reduce.16), index=1
  %dynamic-slice.85 = bf16[1024,256]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%get-tuple-element.578, %constant.324, %multiply.15), dynamic_slice_sizes={1024,256}
  ROOT %tuple.63 = (bf16[256,1024]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,256]{1,0:T(8,128)(2,1)S(1)}) tuple(%dynamic-slice.84, %dynamic-slice.85)
}

%wide.region_0.1_spmd.sunk (wide.param.4: (s32[], bf16[16,64,512], bf16[14,1024,256], bf16[1,512,1024])) -> (s32[], bf16[16,64,512], bf16[14,1024,256], bf16[1,512,1024]) {
  %constant.113.clone.1..sunk = s32[]{:T(128)} constant(1)
  %wide.param.4 = (s32[]{:T(128)}, bf16[16,64,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[14,1024,256]{2,1,0:T(8,128)(2,1)}, bf16[1,512,1024]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.610 = s32[]{:T(128)} get-tuple-element(%wide.param.4), index=0
  %copy.22 = s32[]{:T(128)S(6)} copy(%get-tuple-element.610)
  %add.93 = s32[]{:T(128)} add(%copy.22, %constant.113.clone.1..sunk), metadata={op_name="jit(step)/jvp()/while/body/add" stack_frame_id=11}
  %get-tuple-element.611 = bf16[16,64,512]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.param.4), index=1
  %get-tuple-element.612 = bf16[14,1024,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.4), index=2
  %get-tuple-element.613 = bf16[1,512,1024]{2,1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.4), index=3
  %dynamic-slice.1 = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%get-tuple-element.612, %copy.22), dynamic_slice_sizes={1,1024,256}
  %async-collective-start = (bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) fusion(%dynamic-slice.1), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.63
  %get-tuple-element.683 = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=0
  %get-tuple-element.684 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=1
  %get-tuple-element.685 = s32[2]{0:S(4)} get-tuple-element(%async-collective-start), index=2
  %get-tuple-element.686 = u32[]{:S(2)} get-tuple-element(%async-collective-start), index=3
  %fusion.85 = (bf16[16,64,1024]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) fusion(%get-tuple-element.683, %get-tuple-element.684, %get-tuple-element.685, %get-tuple-element.686, %get-tuple-element.611, /*index=5*/%get-tuple-element.613), kind=kCustom, calls=%async_collective_fusion.85
  %get-tuple-element.713 = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%fusion.85), index=1
  %async-collective-done = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.713, %get-tuple-element.684, %get-tuple-element.685, %get-tuple-element.686), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%fused_computation.65
  %all-reduce.15 = bf16[16,64,512]{2,1,0:T(8,128)(2,1)S(1)} all-reduce(%get-tuple-element.611), channel_id=4, replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add.clone, metadata={op_name="jit(step)/jvp()/while/body/bth,hd->btd/dot_general" stack_frame_id=15}, backend_config={"flag_configs":[],"barrier_config":{"barrier_type":"CUSTOM","id":"1"},"collective_algorithm_config":{"emitter":"RotatedPincerEmitter","debug":"\\nUniDirection1DRingStrategy{colors:2 phases:1 cores:{2},{2}}"}}
  ROOT %tuple.67 = (s32[]{:T(128)}, bf16[16,64,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[14,1024,256]{2,1,0:T(8,128)(2,1)}, bf16[1,512,1024]{2,1,0:T(8,128)(2,1)}) tuple(%add.93, %all-reduce.15, %get-tuple-element.612, %get-tuple-element.613)
}

%wide.region_1.2_spmd (wide.param.1: (s32[], bf16[16,64,512], bf16[14,1024,256], bf16[1,512,1024])) -> pred[] {
  %constant.120.clone.1 = s32[]{:T(128)} constant(14)
  %wide.param.1 = (s32[]{:T(128)}, bf16[16,64,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[14,1024,256]{2,1,0:T(8,128)(2,1)}, bf16[1,512,1024]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.430 = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  ROOT %lt.10 = pred[]{:T(512)} compare(%get-tuple-element.430, %constant.120.clone.1), direction=LT, metadata={op_name="jit(step)/jvp()/while/cond/lt" stack_frame_id=12}, backend_config={"flag_configs":[]}
}

ENTRY %main.6_spmd (param.1: bf16[14,1024,256], param.2: bf16[16,64,512], param.3: bf16[1,512,1024], param.4: bf16[512,1024], param.5: bf16[1024,512]) -> (bf16[16,64,512], bf16[256,1024], bf16[1024,256]) {
  %param.1 = bf16[14,1024,256]{2,1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[1,1,2,4]<=[2,2,2]T(1,0,2) last_tile_dim_replicate}, metadata={op_name="ws[0]"}
  %param.2 = bf16[16,64,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %param.3 = bf16[1,512,1024]{2,1,0:T(8,128)(2,1)} parameter(2)
  %param.4 = bf16[512,1024]{1,0:T(8,128)(2,1)} parameter(3)
  %param.5 = bf16[1024,512]{1,0:T(8,128)(2,1)} parameter(4)
  %constant.7 = s32[]{:T(128)} constant(0)
  %copy.15 = s32[]{:T(128)} copy(%constant.7)
  %tuple.81 = (s32[]{:T(128)}, bf16[16,64,512]{2,1,0:T(8,128)(2,1)}, bf16[14,1024,256]{2,1,0:T(8,128)(2,1)}, bf16[1,512,1024]{2,1,0:T(8,128)(2,1)}) tuple(%copy.15, %param.2, %param.1, %param.3)
  %while.42 = (s32[]{:T(128)}, bf16[16,64,512]{2,1,0:T(8,128)(2,1)}, bf16[14,1024,256]{2,1,0:T(8,128)(2,1)}, bf16[1,512,1024]{2,1,0:T(8,128)(2,1)}) while(%tuple.81), condition=%wide.region_1.2_spmd, body=%wide.region_0.1_spmd.sunk, metadata={op_name="jit(step)/jvp()/while" stack_frame_id=10}
  %get-tuple-element.1 = bf16[16,64,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while.42), index=1
  %all-reduce-scatter = (bf16[256,1024]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,256]{1,0:T(8,128)(2,1)S(1)}) fusion(%param.4, %param.5), kind=kCustom, calls=%all-reduce-scatter.2.clone.1, metadata={op_name="jit(step)/transpose(jvp())/btd,dh->bth/dot_general" stack_frame_id=15}
  %get-tuple-element.2 = bf16[256,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%all-reduce-scatter), index=0
  %get-tuple-element.3 = bf16[1024,256]{1,0:T(8,128)(2,1)} get-tuple-element(%all-reduce-scatter), index=1
  ROOT %tuple.9 = (bf16[16,64,512]{2,1,0:T(8,128)(2,1)}, bf16[256,1024]{1,0:T(8,128)(2,1)}, bf16[1024,256]{1,0:T(8,128)(2,1)}) tuple(%get-tuple-element.1, %get-tuple-element.2, %get-tuple-element.3)
}
"""

# psum over all devices, all-gather, all-to-all and ppermute over the slices of 4 v5e:2x2: the
# compiler has split the program by slice, 4 partitions each, and leaves what crosses slices to its
# runtime.
TPU_FOUR_SLICES = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

ENTRY %main.0_spmd (param.1: f32[16,1024], param.2: f32[4,64,1024]) -> f32[16,1024] {
  %param.1 = f32[16,1024]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %param.2 = f32[4,64,1024]{2,1,0:T(8,128)} parameter(1), metadata={op_name="y"}
  %all-reduce.1 = f32[16,1024]{1,0:T(8,128)S(1)} all-reduce(%param.1), channel_id=2, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%region_0.0.clone.1
  %bitcast.1 = f32[8,4,128]{2,1,0:T(8,128)} bitcast(%all-reduce.1)
  %after-all = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce_0"}
  %send = (f32[8,4,128]{2,1,0:T(8,128)}, u32[], token[]) send(%bitcast.1, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}, backend_config={"flag_configs":[]}
  %recv = (f32[8,4,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %send.1 = (f32[16,1024]{1,0:T(8,128)}, u32[], token[]) send(%param.1, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all_gather.3_0",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  %send.2 = (f32[4,64,1024]{2,1,0:T(8,128)}, u32[], token[]) send(%param.2, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all_to_all.15_0",_xla_megascale_target={{100000,200000,300000,400000},{100001,200001,300001,400001},{100002,200002,300002,400002},{100003,200003,300003,400003}},_xla_megascale_transfer_type="ALL_TO_ALL"}
  %send.3 = (f32[16,1024]{1,0:T(8,128)}, u32[], token[]) send(%param.1, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="ppermute.3_0",_xla_megascale_target={{100000->200000},{200000->300000},{300000->400000},{400000->100000}},_xla_megascale_transfer_type="ONE_TO_ONE"}
  %send.4 = (f32[16,1024]{1,0:T(8,128)}, u32[], token[]) send(%param.1, %after-all), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="tf_rendezvous",_xla_host_transfer_rendezvous="callback_0"}
  ROOT %copy = f32[16,1024]{1,0:T(8,128)} copy(%param.1)
}
"""

# Two H200: cuBLAS, a split-K product in a Triton fusion, cuDNN's attention and convolutions, and
# collectives whose groups are named by mesh axes.
GPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=2

%gemm_fusion_dot_computation (parameter_0.4: bf16[2,1024,512], parameter_1.4: bf16[2,1024,2048]) -> f32[2,512,2048] {
  %parameter_0.4 = bf16[2,1024,512]{2,1,0} parameter(0)
  %parameter_1.4 = bf16[2,1024,2048]{2,1,0} parameter(1)
  ROOT %dot.26 = f32[2,512,2048]{2,1,0} dot(%parameter_0.4, %parameter_1.4), lhs_batch_dims={0}, lhs_contracting_dims={1}, rhs_batch_dims={0}, rhs_contracting_dims={1}, metadata={op_name="jit(step)/transpose(jvp())/btd,dh->bth/transpose" scheduling_name="dot.26" stack_frame_id=9}, backend_config={"sizes":["128"]}
}

ENTRY %main.6_spmd (p.0: bf16[2,1024,512], p.1: bf16[2,1024,2048], p.2: bf16[4,258,12,64], p.3: bf16[32,33,33,64], p.4: bf16[128,3,3,64], /*index=5*/p.5: bf16[256,2048]) -> f32[2,512,2048] {
  %p.0 = bf16[2,1024,512]{2,1,0} parameter(0)
  %p.1 = bf16[2,1024,2048]{2,1,0} parameter(1)
  %p.2 = bf16[4,258,12,64]{3,2,1,0} parameter(2)
  %p.3 = bf16[32,33,33,64]{3,2,1,0} parameter(3)
  %p.4 = bf16[128,3,3,64]{3,2,1,0} parameter(4)
  %p.5 = bf16[256,2048]{1,0} parameter(5)
  %custom-call.1 = (f32[2,512,2048]{2,1,0}, s8[33554432]{0}) custom-call(%p.0, %p.1), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/jvp()/bth,hd->btd/dot_general" scheduling_name="custom-call.1" stack_frame_id=10}, backend_config={"device_type":"DEVICE_TYPE_INVALID","gemm_backend_config":{"alpha_imag":0,"alpha_real":1,"beta":0,"dot_dimension_numbers":{"lhs_batch_dimensions":["0"],"lhs_contracting_dimensions":["1"],"rhs_batch_dimensions":["0"],"rhs_contracting_dimensions":["1"]},"epilogue":"DEFAULT"},"operation_queue_id":"0"}
  %gemm_fusion_dot = f32[2,512,2048]{2,1,0} fusion(%p.0, %p.1), kind=kCustom, calls=%gemm_fusion_dot_computation, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %dot_product_attention_fwd.5 = (bf16[4,12,258,64]{3,1,2,0}, f32[4,12,258]{2,1,0}, u8[256]{0}) custom-call(%p.2, %p.2, %p.2), custom_call_target="__cudnn$fmhaSoftmax", operand_layout_constraints={bf16[4,258,12,64]{3,2,1,0}, bf16[4,258,12,64]{3,2,1,0}, bf16[4,258,12,64]{3,2,1,0}}, api_version=API_VERSION_STATUS_RETURNING, backend_config={"cudnn_fmha_backend_config":{"algorithm":{"algo_id":"0","tuning_knobs":{"17":"1","24":"0"},"workspace_size":"0"},"bmm1_dot_dimension_numbers":{"lhs_batch_dimensions":["0","2"],"lhs_contracting_dimensions":["3"],"rhs_batch_dimensions":["0","2"],"rhs_contracting_dimensions":["3"]},"dropout_rate":0.0,"fmha_scale":0.125,"intermediate_tensor_shape":{"dimensions":["4","12","258","258"],"element_type":"BF16","is_dynamic_dimension":[false,false,false,false]}}}
  %dot_product_attention_bwd.8 = (bf16[4,12,258,64]{3,1,2,0}, bf16[4,12,258,64]{3,1,2,0}, bf16[4,12,258,64]{3,1,2,0}, u8[3220096]{0}) custom-call(%p.2, %p.2, %p.2, %p.2, %p.2, /*index=5*/%p.2), custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"cudnn_fmha_backend_config":{"bmm1_grad_gemm1_dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]},"intermediate_tensor_shape":{"dimensions":["4","12","258","258"],"element_type":"BF16"}}}
  %cudnn-conv.2 = (bf16[32,16,16,128]{3,2,1,0}, u8[0]{0}) custom-call(%p.3, %p.4), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", backend_config={"cudnn_conv_backend_config":{"conv_result_scale":1}}
  %get-tuple-element.6 = bf16[32,16,16,128]{3,2,1,0} get-tuple-element(%cudnn-conv.2), index=0
  %cudnn-conv-bw-filter.2 = (bf16[128,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%p.3, %get-tuple-element.6), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %cudnn-conv-bw-input.2 = (bf16[32,33,33,64]{3,2,1,0}, u8[131]{0}) custom-call(%get-tuple-element.6, %p.4), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %mystery = (bf16[4,4]{1,0}) custom-call(%p.0), custom_call_target="something$new", backend_config="not \\"json"
  %all-gather-start = ((bf16[256,2048]{1,0}, bf16[256,2048]{1,0}), (bf16[512,2048]{1,0}, bf16[512,2048]{1,0})) all-gather-start(%p.5, %p.5), channel_id=1, replica_groups=mesh['axis_0'=2] {'axis_0'}, dimensions={0}, use_global_device_ids=true, frontend_attributes={is_spmd_generated="true",trivially_pipelineable=""}, metadata={op_name="jit(step)/jvp()/while/body/convert_element_type" scheduling_name="all-gather-start" stack_frame_id=17}, backend_config={"collective_backend_config":{"backend":"DEFAULT","is_sync":false}}
  %all-gather-done = (bf16[512,2048]{1,0}, bf16[512,2048]{1,0}) all-gather-done(%all-gather-start), metadata={op_name="jit(step)/jvp()/while/body/convert_element_type"}
  %get-tuple-element.7 = bf16[512,2048]{1,0} get-tuple-element(%all-gather-done), index=0
  %reduce-scatter-start = ((bf16[512,2048]{1,0}, bf16[512,2048]{1,0}), (bf16[256,2048]{1,0}, bf16[256,2048]{1,0})) reduce-scatter-start(%get-tuple-element.7, %get-tuple-element.7), channel_id=8, replica_groups=mesh['axis_0'=2] {'axis_0'}, use_global_device_ids=true, dimensions={0}, to_apply=%add.clone
  %reduce-scatter-done = (bf16[256,2048]{1,0}, bf16[256,2048]{1,0}) reduce-scatter-done(%reduce-scatter-start)
  %collective-permute-start = ((bf16[256,2048]{1,0}), bf16[256,2048]{1,0}) collective-permute-start(%p.5), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done = bf16[256,2048]{1,0} collective-permute-done(%collective-permute-start)
  ROOT %copy = f32[2,512,2048]{2,1,0} copy(%gemm_fusion_dot)
}
"""
