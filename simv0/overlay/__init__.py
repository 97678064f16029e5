"""What a stream says, drawn on the frames of a recording: an MP4, and a live page.

Imports `simv0.stream` and data; nothing imports it but `cli`. Ways in: `draw.render_overlay`, `live.LivePage`.
"""
