"""What a user gives: manifests, recordings, LeRobot datasets, a class of their own, all behind the sample contract.

`contract` says what a sample is; `values` checks each of its values and words the error (`check_label` for a wrong
label). `labels` reads a whole split, `user_class` finds the class that a config names. `recordings` reads videos,
pictures and telemetry from disk; `division` divides a manifest into splits. Imports nothing of networks.
"""
