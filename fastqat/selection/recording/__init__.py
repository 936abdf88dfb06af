"""What `DynamicsRecorder` counts, and what scores of a recorded training are computed from."""
