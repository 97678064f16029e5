"""What a stream says, drawn on the frames of a recording: an MP4, and a live page."""
