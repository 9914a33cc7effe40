"""Extension methods: functions from a model's geometry and a target length to stages of training.

They compute what is to be done; weights are touched in `models` and `training`, never here.
"""
