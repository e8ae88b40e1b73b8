"""Which fields of vLLM's configuration classes are left out of an identity, and why.

A field that no table names is in: an identity that is too fine costs hits, one that is too coarse
costs correct answers. tests/vllm/judged.py has those that were judged to be in;
tests/vllm/test_identity_walk.py fails on one that nobody has judged, in any version.

What "known not to change KV bytes" means:
- Rounding that differs from batch to batch within one engine does not count, so whatever sizes,
  orders or cuts batches is out. Options that choose other kernels for all batches are in.
- A value that vLLM settles late, or in one process alone, must be out or read in a settled form:
  the scheduler and all workers must compute one identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvshelf.vllm.identity.values import plain

_SIZES = "sizes and order of batches; every engine's batches differ from step to step"
_MEMORY = "how much memory vLLM takes"
_PLACE = "processes, addresses, ports and ranks"
_FRONT = "works in the API server, before tokens or after logits"
_SAMPLING = "works on logits, after KV is written"
_LOG = "logs, traces and metrics"
_SETTLED = "vLLM settles it late or in one process; the groups' blocks and pages show it"
_LOADING = "how the same bytes are read"
_GRAPHS = "replays the same kernels"
_PROPOSES = "the draft proposes tokens, the model's own KV is that of the accepted ones"
_WHERE = "where bytes lie, not what they are"
_SLEEP = "frees and restores memory; changed weights are an epoch's business"


@dataclass(frozen=True)
class Judgment:
    """What is known of one configuration class.

    Attributes:
        elsewhere: identity field -> names of fields that it stands for.
        out: reason -> names of fields that are left out.
    """

    elsewhere: Mapping[str, str] = field(default_factory=dict)
    out: Mapping[str, str] = field(default_factory=dict)

    def left_out(self) -> frozenset[str]:
        """Names of fields that are not in as they are."""
        return frozenset(" ".join((*self.elsewhere.values(), *self.out.values())).split())


JUDGED: dict[str, Judgment] = {
    "VllmConfig": Judgment(
        elsewhere={
            "device": "device_config",
            "chunk": "kv_transfer_config",
            "hf_config": "quant_config",
        },
        out={
            _LOG: "observability_config profiler_config logging_config kv_events_config "
            "aux_output_config watchdog_config",
            _FRONT: "structured_outputs_config reasoning_config",
            _SAMPLING: "watermark_config",
            _PLACE: "instance_id shutdown_timeout",
            _WHERE: "offload_config engram_config ec_transfer_config ec_manager_config",
            _SLEEP: "weight_transfer_config",
            "sets fields of the other classes, which are judged": "optimization_level "
            "performance_mode",
        },
    ),
    "ModelConfig": Judgment(
        elsewhere={
            "model": "model",
            "weights": "revision model_weights",
            "hf_config": "hf_config hf_text_config hf_config_path hf_overrides config_format",
            "files": "trust_remote_code",
            "context": "max_model_len generation_config override_generation_config",
            "load": "seed",
        },
        out={
            _FRONT: "tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init "
            "served_model_name allowed_local_media_path allowed_media_domains hf_token "
            "enable_prompt_embeds io_processor_plugin renderer_num_workers "
            "allow_deprecated_quantization",
            _SAMPLING: "max_logprobs logprobs_mode logits_processors use_fp64_gumbel "
            "pooler_config return_sampling_mask enable_return_routed_experts "
            "enable_trace_replay",
            _SLEEP: "enable_sleep_mode sleep_mode_backend enable_cumem_allocator "
            "enable_nccl_comm_suspend sleep_preserve_parameter_names "
            "sleep_mode_offload_cudagraph",
            _PROPOSES: "spec_target_max_model_len",
            "compilation_config.mode shows it": "enforce_eager",
            "a part of another configuration, or set while weights are loaded; follows from "
            "the checkpoint": "is_submodel_config word_embeddings_untied_by_checkpoint",
        },
    ),
    "MultiModalConfig": Judgment(
        elsewhere={"files": "mm_encoder_fp8_scale_path"},
        out={
            _MEMORY: "mm_processor_cache_gb mm_processor_cache_type "
            "mm_shm_cache_max_object_size_mb skip_mm_profiling mm_ipc_gpu_memory_gb",
            _PLACE: "mm_tensor_ipc",
            "writes a file": "mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin",
            "follows from the role of a P/D engine": "allow_missing_mm_embeddings",
        },
    ),
    "CacheConfig": Judgment(
        elsewhere={
            "cache_dtype": "cache_dtype",
            "hash": "prefix_caching_hash_algo",
            "kv_cache_layout": "kv_cache_layout",
            "block_tokens": "block_size mamba_block_size",
            "groups": "sliding_window mamba_page_size_padded skip_page_size_padded",
            "refused": "calculate_kv_scales",
        },
        out={
            _MEMORY: "gpu_memory_utilization kv_cache_memory_bytes num_gpu_blocks_override "
            "num_gpu_blocks num_cpu_blocks kv_cache_size_tokens kv_cache_max_concurrency "
            "kv_offloading_size kv_offloading_backend simple_cpu_offload_num_blocks",
            _SETTLED: "user_specified_block_size user_specified_mamba_block_size "
            "_block_size_resolved effective_attention_block_size is_attention_free",
            "loading a model may turn it off; then nothing is looked up": "enable_prefix_caching",
            "keys of other tokens are other keys": "hash_block_size cache_hit_alignment_tokens",
        },
    ),
    "ParallelConfig": Judgment(
        elsewhere={
            "parallel": "pipeline_parallel_size tensor_parallel_size "
            "prefill_context_parallel_size decode_context_parallel_size "
            "dcp_kv_cache_interleave_size cp_kv_cache_interleave_size world_size "
            "_allow_auto_resolve_cp_interleave_size",
        },
        out={
            _PLACE: "data_parallel_size data_parallel_size_local data_parallel_rank "
            "data_parallel_rank_local data_parallel_master_ip data_parallel_rpc_port "
            "data_parallel_master_port data_parallel_backend data_parallel_external_lb "
            "data_parallel_hybrid_lb data_parallel_index rank master_addr master_port node_rank "
            "nnodes numa_bind numa_bind_nodes numa_bind_cpus assigned_physical_gpu_ids "
            "distributed_timeout_seconds cpu_distributed_timeout_seconds "
            "_data_parallel_master_port_list _coord_store_port _api_process_count "
            "_api_process_rank ray_workers_use_nsight ray_runtime_env placement_group "
            "distributed_executor_backend max_parallel_loading_workers "
            "disable_nccl_for_dp_synchronization enable_fault_tolerance fault_tolerance_config "
            "dp_sync_interval elastic_ep_max_dp_size enable_elastic_ep enable_shm_tensor_arena",
            _SIZES: "enable_dbo ubatch_size dbo_decode_token_threshold dbo_prefill_token_threshold",
            _SAMPLING: "enable_batch_sharded_sampling",
            "another order of the same sum; workers set it themselves": "disable_custom_all_reduce",
            "follows from the model": "is_moe_model",
            "which part of the same weights a rank reads": "enable_ep_weight_filter",
        },
    ),
    "EPLBConfig": Judgment(
        out={
            _SIZES: "window_size step_interval use_async enable_migration_batching",
            _PLACE: "communicator",
            _LOG: "log_balancedness log_balancedness_interval",
        },
    ),
    "SchedulerConfig": Judgment(
        elsewhere={"groups": "disable_hybrid_kv_cache_manager"},
        out={
            _SIZES: "max_num_batched_tokens max_num_scheduled_tokens max_num_seqs "
            "max_num_partial_prefills max_long_partial_prefills long_prefill_token_threshold "
            "enable_chunked_prefill max_num_encoder_input_tokens encoder_cache_size policy "
            "disable_chunked_mm_input scheduler_reserve_full_isl watermark "
            "prefill_schedule_interval async_scheduling stream_interval max_num_queued_reqs "
            "max_num_queued_tokens max_num_active_seqs long_prefill_token_threshold_adaptive",
            "follows from the model": "runner_type is_multimodal_model",
        },
    ),
    "LoadConfig": Judgment(
        elsewhere={"load": "load_format model_loader_extra_config"},
        out={
            _LOADING: "download_dir safetensors_load_strategy safetensors_prefetch_num_threads "
            "safetensors_prefetch_block_size device use_tqdm_on_load pt_load_map_location",
        },
    ),
    "LoRAConfig": Judgment(
        out={
            _MEMORY: "max_loras max_cpu_loras",
            _GRAPHS: "specialize_active_lora",
            _SAMPLING: "max_lora_cls_labels",
        },
    ),
    "SpeculativeConfig": Judgment(
        elsewhere={"speculative_config.draft": "model revision"},
        out={
            _PROPOSES: "prompt_lookup_max prompt_lookup_min suffix_decoding_max_tree_depth "
            "suffix_decoding_max_cached_requests suffix_decoding_max_spec_factor "
            "suffix_decoding_min_token_prob use_local_argmax_reduction dspark_draft_topk "
            "xpress_topc max_model_len",
            _SAMPLING: "rejection_sample_method synthetic_acceptance_rates "
            "synthetic_acceptance_length draft_sample_method fly_window_size "
            "fly_entropy_threshold fly_entropy_top_k",
            _SIZES: "num_speculative_tokens_per_batch_size enforce_eager",
            _LOADING: "draft_load_config",
            "the engine's own, which is judged": "target_model_config target_parallel_config",
            "draft_tensor_parallel_size shows it": "draft_parallel_config",
        },
    ),
    "AttentionConfig": Judgment(
        out={
            _GRAPHS: "flash_attn_max_num_splits_for_cuda_graph tq_max_kv_splits_for_cuda_graph",
            _SIZES: "tokenspeed_mla_min_split_kv sparse_mla_prefill_workspace_factor "
            "indexer_tp_shard_min_rows",
            "models set it while they are loaded; the function is the same": "sparse_mla_force_mqa",
        },
    ),
    "HiSparseConfig": Judgment(out={_MEMORY: "device_buffer_size eager_host_mirror"}),
    "KernelConfig": Judgment(
        out={"compiles kernels sooner": "enable_cutedsl_warmup enable_jit_warmup"},
    ),
    "CompilationConfig": Judgment(
        out={
            _GRAPHS: "cudagraph_mode cudagraph_num_of_warmups cudagraph_capture_sizes "
            "cudagraph_copy_inputs cudagraph_specialize_lora max_cudagraph_capture_size "
            "cudagraph_mm_encoder encoder_cudagraph_token_budgets "
            "encoder_cudagraph_max_vision_items_per_batch "
            "encoder_cudagraph_max_frames_per_batch cudagraph_decoder_replay "
            "decoder_replay_cudagraph_capture_sizes decoder_replay_trim_threshold splitting_ops",
            _SIZES: "compile_sizes compile_ranges_endpoints dynamic_shapes_config",
            _WHERE: "debug_dump_path cache_dir local_cache_dir compile_cache_save_format",
            "what a process found while it compiled or loaded": "enabled_custom_ops "
            "disabled_custom_ops traced_files compilation_time encoder_compilation_time "
            "static_forward_context static_all_moe_layers fast_moe_cold_start",
        },
    ),
    "PassConfig": Judgment(
        out={
            _SIZES: "rope_kvcache_fusion_max_token_num fi_allreduce_fusion_max_size_mb "
            "sp_min_token_num"
        },
    ),
}


def fields_in(config: Any) -> dict[str, Any]:
    """The fields of one of vLLM's configurations that are in, by name: JSON values.

    Configurations in it are read likewise. A class or a field that was never judged is in.
    """
    left_out = JUDGED.get(type(config).__name__, Judgment()).left_out()
    names = [each.name for each in dataclasses.fields(config) if each.name not in left_out]
    # Some versions delete or never set a field that does not apply.
    return {
        name: plain(getattr(config, name), fields_in) for name in names if hasattr(config, name)
    }
