"""Base sets: waveforms, searches, ranges, and which head gets which base. Mathematics only: no checkpoint is read
here."""
