"""What a training needs before it begins: memory of a device by part, time, cost, and the options with which it fits.

From config.json alone. No weights are read and nothing is computed: the model's own code runs on tensors without
contents.
"""
