"""The frozen decoder-only LLM: prefix in, hidden state of the last position out. `load.load_llm` is the way in.

Any decoder of transformers works. `fast` is our own, faster stack for Llama-like families; a new one is added in
`fast.unknown_shape`.
"""
