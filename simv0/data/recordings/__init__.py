"""A recording as it lies on disk: its video or its folder of pictures, its telemetry, and the windows cut from them.

`recording` joins the two; `video` decodes, forwards, and `window_reader` here and there; `open_files` keeps few files
open; `picture_names` orders a folder of pictures; `telemetry` reads the numbers.
"""
