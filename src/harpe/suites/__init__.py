"""What is measured of a checkpoint, one file a suite. Nothing here knows a comparison."""
