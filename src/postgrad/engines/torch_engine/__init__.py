"""The torch engine: continuous batching for any Hugging Face causal LM, on CPU and GPU."""
