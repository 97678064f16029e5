"""What a stream says, drawn on the frames of a recording or a live source: an MP4, and a live page.

Imports `simv0.stream` and data; nothing imports it but `cli`. Ways in: `draw.render_overlay`, `watch.watch`,
`live.LivePage`.
"""
