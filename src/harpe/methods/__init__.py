"""Extension methods: functions from a model's geometry and a target length to stages of training."""
