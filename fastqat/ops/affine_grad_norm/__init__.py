"""Per-sample squared gradient norms of layers with an affine part: normalisation, PReLU, scales per channel."""
