"""Where people follow a run: TensorBoard, W&B, MLflow, trackio.

`follow` hands a run's points on, beside the training and each once; `kinds` are the trackers. None costs a run.
"""
