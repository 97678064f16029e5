"""The frozen vision encoder: frames in, features out. `encoder.load_encoder` is the way in; `tags` and `files` find
its weights. A window's frames are pooled later, in `simv0.model`.
"""
