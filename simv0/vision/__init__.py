"""The frozen vision encoder: frames in, features out. `encoder.load_encoder` is the way in; `tags` and `files` find
its weights.
"""
