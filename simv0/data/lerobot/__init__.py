"""LeRobot v3 datasets: `windows` is the class that a config names; `files` reads, `episodes` and `rows` check.

`import simv0.datasets` loads neither pyarrow nor PyAV.
"""
