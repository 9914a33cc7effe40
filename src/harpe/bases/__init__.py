"""Base sets: waveforms, searches, ranges, and which head gets which base.

Mathematics only, in numpy: no tensors, no models, and no checkpoint is read here.
"""
