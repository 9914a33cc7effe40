"""Pure mathematics of rotary positions: inverse frequencies, attention waveforms, base search, rotation."""
