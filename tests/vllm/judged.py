"""What was judged to be in an identity: fields of vLLM's configuration classes, and environment
variables, of the versions that were looked through (0.26 to 0.33).

At run time whatever ``kvshelf.vllm.identity`` does not leave out is in: these lists only tell a
name that somebody has judged from one that is new. Compiled and eager engines run other kernels for
all batches, so what chooses between them is in.
"""

from __future__ import annotations

# Class -> fields that are in as they are.
FIELDS: dict[str, str] = {
    "VllmConfig": """
        model_config cache_config parallel_config load_config attention_config mamba_config
        kernel_config lora_config speculative_config diffusion_config compilation_config
        additional_config scheduler_config""",
    "ModelConfig": """
        runner convert code_revision dtype quantization quantization_config disable_sliding_window
        disable_cascade_attn model_class_overrides model_impl override_attention_dtype
        multimodal_config""",
    "MultiModalConfig": """
        language_model_only limit_per_prompt media_io_kwargs mm_processor_kwargs mm_encoder_only
        mm_encoder_tp_mode mm_encoder_attn_backend mm_encoder_attn_dtype video_pruning_rate
        video_pruning_method mm_device_do_normalize mm_hasher_algorithm interleave_mm_strings
        enable_mm_embeds""",
    "CacheConfig": """
        kv_cache_dtype_skip_layers mamba_cache_dtype mamba_ssm_cache_dtype mamba_cache_mode
        prefix_match_unit kv_sharing_fast_prefill replayssm_buffer_len use_replayssm
        use_kda_recoverssm prefix_cache_retention_interval enable_mamba_fine_grained_prefix_cache
        enable_mamba_shared_prefix_checkpoint swa_bounded_replay""",
    "ParallelConfig": """
        enable_expert_parallel enable_eplb expert_placement_strategy all2all_backend
        dcp_comm_backend dcp_q_replicate enable_hc_sp worker_cls sd_worker_cls worker_extension_cls
        eplb_config""",
    "EPLBConfig": "num_redundant_experts policy",
    "SchedulerConfig": "scheduler_cls",
    "LoadConfig": "ignore_patterns",
    "LoRAConfig": """
        max_lora_rank fully_sharded_loras lora_dtype target_modules default_mm_loras
        enable_tower_connector_lora enable_mixed_moe_lora_format enable_moe_shared_loras""",
    "SpeculativeConfig": """
        method num_speculative_tokens quantization moe_backend attention_backend kv_cache_dtype
        draft_tensor_parallel_size tensor_parallel_size disable_padded_drafter_batch
        use_heterogeneous_vocab parallel_drafting index_share_for_mtp_iteration
        disable_eagle_block_drop disable_lookahead_block_hashes enable_adaptive_verification
        draft_lm_head_quantization draft_model_config code_revision""",
    "AttentionConfig": """
        backend backend_per_kind flash_attn_version use_prefill_decode_attention
        use_trtllm_attention disable_flashinfer_q_quantization mla_prefill_backend
        use_prefill_query_quantization use_fp4_indexer_cache indexer_kv_dtype use_non_causal
        flex_attn_block_m flex_attn_block_n flex_attn_q_block_size flex_attn_kv_block_size
        minimax_m3_msa_decode_backend hisparse_config indexer_sparse_logits trtllm_ragged_backend
        minimax_m3_indexer_cp""",
    "MambaConfig": """
        backend enable_stochastic_rounding stochastic_rounding_philox_rounds ssu_algorithm""",
    "KernelConfig": """
        ir_op_priority enable_flashinfer_autotune enable_bf16x3_router_gemm moe_backend
        linear_backend sparse_indexer_topk_backend linear_backend_per_quant
        enable_rocm_segmented_attn_autotune monokernel""",
    "IrOpPriorityConfig": "rms_norm fused_add_rms_norm gelu_and_mul_sparse",
    "DiffusionConfig": "canvas_length max_denoising_steps",
    "CompilationConfig": """
        mode backend custom_ops inductor_compile_config inductor_passes pass_config
        use_inductor_graph_partition ir_enable_torch_wrap compile_mm_encoder""",
    "PassConfig": """
        fuse_norm_quant fuse_act_quant fuse_attn_quant eliminate_noops enable_sp fuse_gemm_comms
        fuse_allreduce_rms enable_qk_norm_rope_fusion fuse_rope_kvcache_cat_mla fuse_act_padding
        fuse_mla_dual_rms_norm fuse_rope_kvcache fuse_qk_norm_rope_kvcache""",
    "QuantizationConfigArgs": "linear moe ignore targets",
    "QuantSpec": "weight activation",
}

VARIABLES = """
    AITER_SITUV2_A8W4 K_SCALE_CONSTANT Q_SCALE_CONSTANT V_SCALE_CONSTANT
    VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE VLLM_ALLREDUCE_USE_FLASHINFER
    VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC VLLM_B12X_MOE_FP4_FORCE_A16 VLLM_BATCH_INVARIANT
    VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER VLLM_CPU_ATTN_SPLIT_KV VLLM_CPU_INT4_W4A8
    VLLM_CPU_SGL_KERNEL VLLM_DCP_Q_REPLICATE VLLM_DEEPEPLL_NVFP4_DISPATCH
    VLLM_DEEPEP_HIGH_THROUGHPUT_FORCE_INTRA_NODE VLLM_DEEPEP_LOW_LATENCY_USE_MNNVL
    VLLM_DEEPEP_V2_ALLOW_HYBRID_MODE VLLM_DEEPEP_V2_ALLOW_MULTIPLE_REDUCTION
    VLLM_DEEPEP_V2_PREFER_OVERLAP VLLM_DISABLED_KERNELS
    VLLM_DISABLE_DSV4_MEGAMOE_SHARED_EXPERT_FUSION VLLM_DISABLE_PYNCCL
    VLLM_ENABLE_FLA_PACKED_RECURRENT_DECODE VLLM_ENABLE_GEMM_RS VLLM_ENABLE_HPC_OPS
    VLLM_ENABLE_INDUCTOR_COORDINATE_DESCENT_TUNING VLLM_ENABLE_INDUCTOR_MAX_AUTOTUNE
    VLLM_ENABLE_PREGRAD_PASSES VLLM_FLASHINFER_ALLREDUCE_BACKEND VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS
    VLLM_FLASHINFER_MOE_A2A_LOW_PRECISION_COMBINE VLLM_FLOAT32_MATMUL_PRECISION
    VLLM_GDN_DECODE_KERNEL VLLM_HUMMING_INPUT_QUANT_CONFIG VLLM_HUMMING_MOE_GEMM_TYPE
    VLLM_HUMMING_ONLINE_QUANT_CONFIG VLLM_HUMMING_USE_F16_ACCUM VLLM_KIMI_K3_GEMM_AR
    VLLM_KIMI_K3_GEMM_RS VLLM_KIMI_K3_SHARD_SP_SHARED_EXPERT VLLM_MARLIN_INPUT_DTYPE
    VLLM_MARLIN_USE_ATOMIC_ADD VLLM_MAX_IMAGE_PIXELS VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE
    VLLM_MOE_ROUTING_SIMULATION_STRATEGY VLLM_MOE_USE_DEEP_GEMM VLLM_MXFP4_EMULATION_DEQUANT_AT_LOAD
    VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD VLLM_PP_LAYER_PARTITION VLLM_REPLICATE_EMBED
    VLLM_ROCM_AITER_MEGA_MOE_FUSE_SHARED_EXPERTS VLLM_ROCM_AITER_MLA_ASM_PADDING
    VLLM_ROCM_AITER_MLA_DCP_VERIFY VLLM_ROCM_AITER_MOE_DISPATCH_POLICY VLLM_ROCM_FP8_MFMA_PAGE_ATTN
    VLLM_ROCM_FP8_PADDING VLLM_ROCM_MOE_PADDING VLLM_ROCM_MONO_DECODE
    VLLM_ROCM_MUSE_MOE_ONLINE_QUANT VLLM_ROCM_MUSE_MOE_REDUCE_DTYPE
    VLLM_ROCM_QUICK_REDUCE_CAST_BF16_TO_FP16 VLLM_ROCM_QUICK_REDUCE_MAX_SIZE_BYTES_MB
    VLLM_ROCM_QUICK_REDUCE_MIN_SIZE_BYTES_MB VLLM_ROCM_QUICK_REDUCE_QUANTIZATION
    VLLM_ROCM_QUICK_REDUCE_QUANTIZATION_MIN_SIZE_KB VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT
    VLLM_ROCM_USE_AITER VLLM_ROCM_USE_AITER_CUSTOM_AR VLLM_ROCM_USE_AITER_FP4BMM
    VLLM_ROCM_USE_AITER_FP4_ASM_GEMM VLLM_ROCM_USE_AITER_FP8BMM
    VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS VLLM_ROCM_USE_AITER_LINEAR
    VLLM_ROCM_USE_AITER_LINEAR_HIPBMM VLLM_ROCM_USE_AITER_MHA VLLM_ROCM_USE_AITER_MLA
    VLLM_ROCM_USE_AITER_MOE VLLM_ROCM_USE_AITER_MOE_A4W4_DSV4 VLLM_ROCM_USE_AITER_MOE_SITUV2
    VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4 VLLM_ROCM_USE_AITER_RMSNORM VLLM_ROCM_USE_AITER_TRITON_GEMM
    VLLM_ROCM_USE_AITER_TRITON_ROPE VLLM_ROCM_USE_AITER_TRITON_SPARSE_MLA
    VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION VLLM_SSM_CONV_STATE_LAYOUT
    VLLM_STEP5_SHARD_SP_SHARED_EXPERT VLLM_TEST_FORCE_FP8_MARLIN VLLM_TPU_USING_PATHWAYS
    VLLM_TRITON_ATTN_USE_TD VLLM_TRITON_FORCE_FIRST_CONFIG VLLM_TRITON_USE_TD
    VLLM_TUNED_CONFIG_FOLDER VLLM_USE_DEEP_GEMM VLLM_USE_DEEP_GEMM_E8M0
    VLLM_USE_DEEP_GEMM_TMA_ALIGNED_SCALES VLLM_USE_DIRECT_DCP_A2A VLLM_USE_DIRECT_DCP_KV_GATHER
    VLLM_USE_DIRECT_DCP_Q_GATHER VLLM_USE_FLASHINFER_MOE_INT4 VLLM_USE_FUSED_MOE_GROUPED_TOPK
    VLLM_USE_HW_AGNOSTIC VLLM_USE_NCCL_SYMM_MEM VLLM_USE_OINK_OPS VLLM_USE_STANDALONE_COMPILE
    VLLM_USE_TRITON_AWQ VLLM_USE_V2_MODEL_RUNNER VLLM_VIDEO_LOADER_BACKEND VLLM_XLA_USE_SPMD
    VLLM_XPU_FORCE_N_CONTIG_WEIGHT VLLM_XPU_INC_WNA16_BACKEND VLLM_ZENTORCH_WEIGHT_PREPACK"""
