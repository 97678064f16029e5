"""Speed at batch 1 on a CPU, and nothing else: packed weights, and one compiled loop (extra `robot`).

Only `simv0.predict` knows this room, by `prepare`.
"""
