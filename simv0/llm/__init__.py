"""The frozen decoder-only LLM: prefix in, hidden state of the last position out. `load.load_llm` is the way in.

`fast` is our own stack for Llama-like families: a new family's rule goes into `fast.unknown_shape`.
"""
