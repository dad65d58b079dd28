"""The vLLM engine (extra `vllm`): continuous batching by vLLM, in this process, with weights swapped in mid-sequence."""
