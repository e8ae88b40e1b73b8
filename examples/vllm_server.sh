#!/bin/sh
# One replica: sh vllm_server.sh MODEL /mnt/shared/kv [vLLM's options]. Start it on every node alike.
set -eu
model=$1 root=$2
shift 2
kvshelf doctor "$root" --quick || [ $? -eq 1 ] # 1: a warning; read it
exec vllm serve "$model" "$@" --kv-transfer-config "{
  \"kv_connector\": \"KvshelfConnector\",
  \"kv_role\": \"kv_both\",
  \"kv_connector_extra_config\": {\"shared_storage_path\": \"$root\"}
}"
